//! A CA of our own, for servers without a public name: `tls/ca.{crt,key}`, `tls/leaf.{crt,key}` and `tls/names`.
//!
//! Devices pin the CA's key, so that leaves can be renewed without telling anybody; people tell git and their browser to
//! trust `ca.crt`.

use std::{
    fs,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _,
};
use sha2::{Digest as _, Sha256};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long the CA is good for.
const CA_DAYS: u32 = 3650;
/// How long a leaf is good for: under the 398 days that clients accept.
const LEAF_DAYS: u32 = 365;
/// A leaf with less than this left is renewed.
pub const RENEW_DAYS: u32 = 30;

/// Whether a CA was made in this folder.
#[must_use]
pub fn exists(dir: &Path) -> bool {
    dir.join("ca.crt").exists() && dir.join("ca.key").exists()
}

/// Makes the CA (unless there is one) and a leaf for these names; gives the CA's pin.
///
/// # Errors
/// When there are no names, or a file cannot be written.
pub fn init(dir: &Path, names: &[String], now: SystemTime) -> anyhow::Result<String> {
    ensure!(
        !names.is_empty(),
        "no names: give --name for each host name and address people and devices will use"
    );
    for name in names {
        let sound = name.parse::<IpAddr>().is_ok()
            || (!name.is_empty()
                && name.len() <= 253
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.')));
        ensure!(sound, "{name:?} is neither a host name nor an address (leave out https:// and the port)");
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("making the folder {}", dir.display()))?;
    if !exists(dir) {
        let key = KeyPair::generate().context("making the key of the CA")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Copal private CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, now, CA_DAYS);
        let cert = params.self_signed(&key).context("making the CA")?;
        write(&dir.join("ca.key"), &key.serialize_pem(), 0o600)?;
        write(&dir.join("ca.crt"), &cert.pem(), 0o644)?;
    }
    write(&dir.join("names"), &(names.join("\n") + "\n"), 0o644)?;
    leaf(dir, names, now)?;
    pin(dir)
}

/// Renews the leaf when it has less than [`RENEW_DAYS`] left, or is not there. Whether it did.
///
/// # Errors
/// When the CA cannot be read or the leaf not be written.
pub fn renew(dir: &Path, now: SystemTime) -> anyhow::Result<bool> {
    if let Ok(pem) = fs::read(dir.join("leaf.crt")) {
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem)
            .map_err(|e| anyhow::anyhow!("{}: {e}", dir.join("leaf.crt").display()))?;
        let cert = pem.parse_x509().context("reading leaf.crt")?;
        let until = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(until);
        if until > now + DAY * RENEW_DAYS {
            return Ok(false);
        }
    }
    let path = dir.join("names");
    let names = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let names: Vec<String> = names.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect();
    leaf(dir, &names, now)?;
    Ok(true)
}

/// The CA's pin: base64 of the SHA-256 over its public key (DER SubjectPublicKeyInfo).
///
/// # Errors
/// When the CA's key cannot be read.
pub fn pin(dir: &Path) -> anyhow::Result<String> {
    Ok(BASE64.encode(Sha256::digest(ca_key(dir)?.subject_public_key_info())))
}

fn ca_key(dir: &Path) -> anyhow::Result<KeyPair> {
    let path = dir.join("ca.key");
    let pem = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    KeyPair::from_pem(&pem).with_context(|| format!("{} is not a key", path.display()))
}

/// Makes a leaf; `leaf.crt` holds it and the CA, so that a pin on the CA matches what the server sends.
fn leaf(dir: &Path, names: &[String], now: SystemTime) -> anyhow::Result<()> {
    let ca = fs::read_to_string(dir.join("ca.crt")).context("reading ca.crt")?;
    let issuer = Issuer::from_ca_cert_pem(&ca, ca_key(dir)?).context("ca.crt is not a CA")?;
    let key = KeyPair::generate().context("making the key of the leaf")?;
    let mut params = CertificateParams::new(names.to_vec()).context("the names of the leaf")?;
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("copal", String::as_str));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, LEAF_DAYS);
    let cert = params.signed_by(&key, &issuer).context("signing the leaf")?;
    // The key first: a crash between the two leaves a pair that does not fit, which the next start renews.
    write(&dir.join("leaf.key"), &key.serialize_pem(), 0o600)?;
    write(&dir.join("leaf.crt"), &(cert.pem() + &ca), 0o644)
}

fn validity(params: &mut CertificateParams, now: SystemTime, days: u32) {
    // A device's clock may be a little behind ours.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * days).into();
}

fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let temp = path.with_extension("new");
    let _ = fs::remove_file(&temp);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temp)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temp, path)
    })();
    written.with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_ca_stays_and_the_leaf_is_renewed_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let tls = dir.path().join("tls");
        let now = SystemTime::now();
        let pin = init(&tls, &["copal.test".to_owned(), "10.0.0.1".to_owned()], now).unwrap();
        assert!(exists(&tls));
        assert_eq!(fs::metadata(tls.join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(tls.join("leaf.key")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!renew(&tls, now).unwrap());
        assert!(!renew(&tls, now + DAY * 334).unwrap());
        let before = fs::read(tls.join("leaf.crt")).unwrap();
        assert!(renew(&tls, now + DAY * 336).unwrap());
        assert_ne!(fs::read(tls.join("leaf.crt")).unwrap(), before);
        assert_eq!(super::pin(&tls).unwrap(), pin, "the pin outlives the leaf");
        assert_eq!(init(&tls, &["other.test".to_owned()], now).unwrap(), pin, "so does it a second init");
    }

    #[test]
    fn names_that_are_none_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["https://x", "a b", "", "x:443"] {
            assert!(init(dir.path(), &[bad.to_owned()], SystemTime::now()).is_err(), "{bad:?}");
        }
        assert!(init(dir.path(), &[], SystemTime::now()).is_err());
    }
}
