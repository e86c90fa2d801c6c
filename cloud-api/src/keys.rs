//! The server's own keys, in files of mode 0600 outside the database: builder, assign, and the key that encrypts
//! secrets at rest.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use anyhow::Context as _;
use chacha20poly1305::{
    ChaCha20Poly1305, Key, Nonce,
    aead::{Aead as _, KeyInit as _, Payload},
};
use copal_protocol::keys::SigningKey;

/// The keys.
#[derive(Debug)]
pub struct ServerKeys {
    /// Signs build records, and releases where the fleet's mode allows it.
    pub builder: SigningKey,
    /// Signs assignments and freshness.
    pub assign: SigningKey,
    /// Encrypts secrets at rest.
    pub at_rest: AtRest,
}

impl ServerKeys {
    /// Reads the keys of a data folder that a server was started on.
    ///
    /// # Errors
    /// When there are none, or one cannot be read.
    pub fn existing(dir: &Path) -> anyhow::Result<Self> {
        anyhow::ensure!(
            dir.join("assign.key").exists(),
            "{} holds no keys: a server makes them when it is first started on its data folder",
            dir.display()
        );
        Self::open(dir)
    }

    /// Reads the keys of a data folder, making those that are missing.
    ///
    /// # Errors
    /// When a file cannot be read or made, or is not a key.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("making the key folder {}", dir.display()))?;
        Ok(Self {
            builder: SigningKey::from_seed(&seed(&dir.join("builder.key"))?),
            assign: SigningKey::from_seed(&seed(&dir.join("assign.key"))?),
            at_rest: AtRest(ChaCha20Poly1305::new(&Key::from(seed(&dir.join("at-rest.key"))?))),
        })
    }
}

impl ServerKeys {
    /// The fingerprints an owner compares before the first root names these keys, as lines for a terminal.
    #[must_use]
    pub fn fingerprints(&self) -> String {
        format!("builder key  {}\nassign key   {}", self.builder.public().id(), self.assign.public().id())
    }
}

/// 32 bytes as hex in a file, made when there is none.
fn seed(file: &Path) -> anyhow::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    match fs::read_to_string(file) {
        Ok(text) => hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| {
            anyhow::anyhow!(
                "{} does not hold a key (64 hex digits). Restore it from a back-up; without it devices do not believe this server.",
                file.display()
            )
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
            let mut out = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(file)
                .with_context(|| format!("making the key {}", file.display()))?;
            writeln!(out, "{}", hex::encode(bytes))?;
            out.sync_all()?;
        }
        Err(error) => return Err(error).with_context(|| format!("reading the key {}", file.display())),
    }
    Ok(bytes)
}

/// Authenticated encryption of secrets at rest. `place` (table and id) is bound in, so that a row cannot be swapped
/// for another.
pub struct AtRest(ChaCha20Poly1305);

impl std::fmt::Debug for AtRest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AtRest")
    }
}

impl AtRest {
    /// Encrypts.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn seal(&self, place: &str, secret: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        let sealed = self
            .0
            .encrypt(&Nonce::from(nonce), Payload { msg: secret, aad: place.as_bytes() })
            .map_err(|_| anyhow::anyhow!("encrypting for {place}"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Decrypts.
    ///
    /// # Errors
    /// When it was not sealed for this place with this key.
    pub fn open(&self, place: &str, sealed: &[u8]) -> anyhow::Result<Vec<u8>> {
        let wrong =
            || anyhow::anyhow!("the secret at {place} was not encrypted with this server's at-rest key");
        let (nonce, sealed) = sealed.split_first_chunk::<12>().ok_or_else(wrong)?;
        self.0
            .decrypt(&Nonce::from(*nonce), Payload { msg: sealed, aad: place.as_bytes() })
            .map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_a_restart_and_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("keys");
        let first = ServerKeys::open(&dir).unwrap();
        let second = ServerKeys::open(&dir).unwrap();
        assert_eq!(first.builder.public(), second.builder.public());
        assert_ne!(first.builder.public(), first.assign.public());
        assert!(second.fingerprints().contains(&first.assign.public().id().to_string()));
        assert_eq!(fs::metadata(dir.join("assign.key")).unwrap().permissions().mode() & 0o777, 0o600);
        let sealed = first.at_rest.seal("variables/1", b"hunter2").unwrap();
        assert_eq!(second.at_rest.open("variables/1", &sealed).unwrap(), b"hunter2");
        assert!(second.at_rest.open("variables/2", &sealed).is_err());
    }

    #[test]
    fn looking_at_keys_makes_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ServerKeys::existing(&dir.path().join("keys")).is_err());
        assert!(!dir.path().join("keys").exists());
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("builder.key"), "gibberish").unwrap();
        assert!(ServerKeys::open(dir.path()).unwrap_err().to_string().contains("back-up"));
    }
}
