//! A private key as a text file.
//!
//! ```text
//! -----BEGIN COPAL PRIVATE KEY-----
//! role: root
//! keyid: <hex SHA-256 of the raw public key>
//! label: anna@laptop
//! encryption: argon2id+chacha20poly1305 salt=<base64>
//!
//! <base64: the 32-byte Ed25519 seed; encrypted: 12 bytes nonce, then the ciphertext with its tag>
//! -----END COPAL PRIVATE KEY-----
//! ```
//! `label` and `encryption` may be absent. The key of the encryption is argon2id (64 MiB, 3 passes, 1 lane, version
//! 0x13) of the passphrase; role and keyid are authenticated with it.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit as _,
    aead::{Aead as _, Payload},
};
use copal_protocol::{documents::Role, keys::SigningKey};
use zeroize::Zeroizing;

const BEGIN: &str = "-----BEGIN COPAL PRIVATE KEY-----";
const END: &str = "-----END COPAL PRIVATE KEY-----";
const SCHEME: &str = "argon2id+chacha20poly1305";

/// Why a key file is not one, or does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// Not a key file.
    #[error("not a Copal key file: {0}")]
    Format(&'static str),
    /// The key inside is not the one the file names.
    #[error("the key inside is not the one its keyid names; the file is damaged")]
    Keyid,
    /// It is encrypted and no passphrase was given.
    #[error("it is protected by a passphrase")]
    NeedsPassphrase,
    /// The passphrase does not open it.
    #[error("the passphrase does not open it")]
    Passphrase,
    /// No randomness or no memory.
    #[error("{0}")]
    System(String),
}

/// A private key with what it is for.
#[derive(Debug)]
pub struct KeyFile {
    /// `root`, `release`, `host` or `operator`.
    pub role: Role,
    /// For people.
    pub label: String,
    /// The key.
    pub key: SigningKey,
}

/// Parses the word for a role.
#[must_use]
pub fn role(word: &str) -> Option<Role> {
    [Role::Root, Role::Release, Role::Host, Role::Builder, Role::Assign, Role::Operator]
        .into_iter()
        .find(|role| role.as_str() == word)
}

fn authenticated(role: Role, keyid: &str) -> Vec<u8> {
    format!("copal key v1\n{}\n{keyid}", role.as_str()).into_bytes()
}

fn derive(passphrase: &str, salt: &[u8]) -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    let system = |e: argon2::Error| KeyFileError::System(e.to_string());
    let params = argon2::Params::new(64 << 10, 3, 1, Some(32)).map_err(system)?;
    let mut key = Zeroizing::new([0; 32]);
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, &mut *key)
        .map_err(system)?;
    Ok(key)
}

fn random<const N: usize>() -> Result<[u8; N], KeyFileError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| KeyFileError::System(e.to_string()))?;
    Ok(bytes)
}

impl KeyFile {
    /// The file's text, encrypted where a passphrase is given.
    ///
    /// # Errors
    /// [`KeyFileError::System`].
    pub fn to_text(&self, passphrase: Option<&str>) -> Result<Zeroizing<String>, KeyFileError> {
        let keyid = self.key.public().id().to_string();
        let label: String = self.label.chars().filter(|c| !c.is_control()).take(80).collect();
        let seed = self.key.seed();
        let (encryption, body) = match passphrase {
            None => (String::new(), Zeroizing::new(BASE64.encode(*seed))),
            Some(passphrase) => {
                let (salt, nonce) = (random::<16>()?, random::<12>()?);
                let cipher = ChaCha20Poly1305::new((&*derive(passphrase, &salt)?).into());
                let aad = authenticated(self.role, &keyid);
                let sealed = cipher
                    .encrypt((&nonce).into(), Payload { msg: &*seed, aad: &aad })
                    .map_err(|_| KeyFileError::System("encryption failed".to_owned()))?;
                let body = BASE64.encode([nonce.as_slice(), &sealed].concat());
                (format!("encryption: {SCHEME} salt={}\n", BASE64.encode(salt)), Zeroizing::new(body))
            }
        };
        Ok(Zeroizing::new(format!(
            "{BEGIN}\nrole: {}\nkeyid: {keyid}\nlabel: {label}\n{encryption}\n{}\n{END}\n",
            self.role.as_str(),
            &*body
        )))
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn parse(text: &str, passphrase: Option<&str>) -> Result<Self, KeyFileError> {
        use KeyFileError::Format;
        let inside = text.trim().strip_prefix(BEGIN).and_then(|t| t.strip_suffix(END));
        let inside = inside.ok_or(Format("its first and last line are not those of one"))?;
        let (headers, body) =
            inside.trim().split_once("\n\n").ok_or(Format("no empty line before the key"))?;
        let header = |name: &str| {
            headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let role = header("role").and_then(role).ok_or(Format("no known role"))?;
        let keyid = header("keyid").ok_or(Format("no keyid"))?;
        let body = Zeroizing::new(BASE64.decode(body.trim()).map_err(|_| Format("the key is not base64"))?);
        let seed: Zeroizing<Vec<u8>> = match header("encryption") {
            None => body,
            Some(how) => {
                let salt = how
                    .strip_prefix(SCHEME)
                    .and_then(|rest| rest.trim().strip_prefix("salt="))
                    .and_then(|salt| BASE64.decode(salt).ok())
                    .filter(|salt| salt.len() == 16)
                    .ok_or(Format("an encryption that is not understood"))?;
                let passphrase = passphrase.ok_or(KeyFileError::NeedsPassphrase)?;
                let (nonce, sealed) = body.split_first_chunk::<12>().ok_or(Format("the key is too short"))?;
                let cipher = ChaCha20Poly1305::new((&*derive(passphrase, &salt)?).into());
                let aad = authenticated(role, keyid);
                let opened = cipher.decrypt(nonce.into(), Payload { msg: sealed, aad: &aad });
                Zeroizing::new(opened.map_err(|_| KeyFileError::Passphrase)?)
            }
        };
        let seed: &[u8; 32] = seed.as_slice().try_into().map_err(|_| Format("a key is 32 bytes"))?;
        let key = SigningKey::from_seed(seed);
        if key.public().id().to_string() != keyid {
            return Err(KeyFileError::Keyid);
        }
        Ok(Self { role, label: header("label").unwrap_or_default().to_owned(), key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> KeyFile {
        KeyFile { role: Role::Root, label: "anna".to_owned(), key: SigningKey::from_seed(&[7; 32]) }
    }

    #[test]
    fn a_key_comes_back_from_its_file() {
        let text = file().to_text(None).unwrap();
        let back = KeyFile::parse(&text, None).unwrap();
        assert_eq!((back.role, back.label.as_str()), (Role::Root, "anna"));
        assert_eq!(*back.key.seed(), [7; 32]);
    }

    #[test]
    fn a_passphrase_hides_the_key_and_only_it_opens_it() {
        let text = file().to_text(Some("horse")).unwrap();
        assert!(!text.contains(&BASE64.encode([7; 32])));
        assert_eq!(KeyFile::parse(&text, None).unwrap_err(), KeyFileError::NeedsPassphrase);
        assert_eq!(KeyFile::parse(&text, Some("cow")).unwrap_err(), KeyFileError::Passphrase);
        assert_eq!(*KeyFile::parse(&text, Some("horse")).unwrap().key.seed(), [7; 32]);
        let moved = text.replace("role: root", "role: release");
        assert_eq!(KeyFile::parse(&moved, Some("horse")).unwrap_err(), KeyFileError::Passphrase);
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let text = file().to_text(None).unwrap();
        let other = SigningKey::from_seed(&[8; 32]).public().id().to_string();
        let keyid = SigningKey::from_seed(&[7; 32]).public().id().to_string();
        assert_eq!(KeyFile::parse(&text.replace(&keyid, &other), None).unwrap_err(), KeyFileError::Keyid);
        for bad in ["", BEGIN, &text[..40], &text.replace("role: root", "role: king"), &text.replace('=', "")]
        {
            assert!(matches!(KeyFile::parse(bad, None), Err(KeyFileError::Format(_))), "{bad}");
        }
    }
}
