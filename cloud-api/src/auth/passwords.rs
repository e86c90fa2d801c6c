//! Passwords: argon2id, hashed beside the async threads and only a few at a time, since each takes 19 MiB and a core.

use argon2::{Argon2, PasswordHasher as _, PasswordVerifier};
use tokio::sync::Semaphore;

use crate::error::{Problem, Result};

/// The fewest characters a password may have.
pub const MIN_CHARS: usize = 12;
/// The most bytes: hashing must not become a way to spend our time.
pub const MAX_BYTES: usize = 512;

/// How many are hashed at once.
const AT_ONCE: usize = 4;
/// How many may wait before the next is sent away.
const WAITING: usize = 64;

/// Bounds the hashing of passwords.
#[derive(Debug)]
pub struct Hashing {
    running: Semaphore,
    admitted: Semaphore,
}

impl Default for Hashing {
    fn default() -> Self {
        Self { running: Semaphore::new(AT_ONCE), admitted: Semaphore::new(AT_ONCE + WAITING) }
    }
}

/// Whether a password may be set.
///
/// # Errors
/// 422 `password_weak`.
pub fn check_new(password: &str) -> Result<()> {
    if password.chars().count() < MIN_CHARS || password.len() > MAX_BYTES {
        return Err(Problem::invalid(
            "password_weak",
            format!(
                "A password has at least {MIN_CHARS} characters and at most {MAX_BYTES} bytes; a few random words do well."
            ),
        ));
    }
    Ok(())
}

impl Hashing {
    /// Hashes a new password (PHC string).
    ///
    /// # Errors
    /// 503 `busy` when too many wait.
    pub async fn hash(&self, password: String) -> Result<String> {
        self.run(move || {
            Argon2::default()
                .hash_password(password.as_bytes())
                .map(|h| h.to_string())
                .map_err(|e| Problem::internal(format!("hashing a password: {e}")))
        })
        .await?
    }

    /// Whether this is the password. Without a stored hash (an unknown user) as much work is done as with one, so that
    /// the time taken does not tell whether there is such a user.
    ///
    /// # Errors
    /// 503 `busy` when too many wait.
    pub async fn verify(&self, stored: Option<String>, password: String) -> Result<bool> {
        if password.len() > MAX_BYTES {
            return Ok(false);
        }
        self.run(move || match stored {
            Some(hash) => {
                PasswordVerifier::<str>::verify_password(&Argon2::default(), password.as_bytes(), &hash)
                    .is_ok()
            }
            None => {
                let _ = Argon2::default().hash_password(password.as_bytes());
                false
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let busy = || {
            Problem::new(
                axum::http::StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "Too many people are signing in at this moment. Try again shortly.",
            )
            .retry_after(2)
        };
        let _admitted = self.admitted.try_acquire().map_err(|_| busy())?;
        let _running = self.running.acquire().await.map_err(|_| busy())?;
        tokio::task::spawn_blocking(work).await.map_err(Problem::internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_verifies_and_an_unknown_user_never() {
        let hashing = Hashing::default();
        let hash = hashing.hash("correct horse battery".to_owned()).await.unwrap();
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        assert!(hashing.verify(Some(hash.clone()), "correct horse battery".to_owned()).await.unwrap());
        assert!(!hashing.verify(Some(hash), "correct horse".to_owned()).await.unwrap());
        assert!(!hashing.verify(None, "correct horse battery".to_owned()).await.unwrap());
        assert!(!hashing.verify(None, "x".repeat(1 << 20)).await.unwrap());
    }

    #[test]
    fn short_and_huge_passwords_are_refused() {
        assert!(check_new("elevenchars").is_err());
        assert!(check_new("twelve chars").is_ok());
        assert!(check_new(&"x".repeat(513)).is_err());
    }
}
