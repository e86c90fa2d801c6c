//! Enrolment tokens, login challenges and introduction secrets: what is signed or MACed, to the byte.

use crate::{
    ids::{DeviceId, FleetId, Sha256Hex},
    keys::PublicKey,
};

/// Splits `id.secret`. `None` where it is not two non-empty parts of `[0-9a-zA-Z_-]`.
#[must_use]
pub fn split_token(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let sound = |s: &str| {
        !s.is_empty()
            && s.len() <= 128
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    (sound(id) && sound(secret)).then_some((id, secret))
}

/// Proof that the device knows the token's secret, without giving it away: HMAC-SHA256 under the secret over context,
/// fleet, token id and both public keys.
#[must_use]
pub fn token_mac(secret: &str, fleet: FleetId, token_id: &str, key: &PublicKey, seal_key: &str) -> Sha256Hex {
    mac(secret, &format!("copal enrol v1\n{fleet}\n{token_id}\n{key}\n{seal_key}"))
}

/// Proof for the CLI that a device key is the card's it wrote; the cloud never has the secret.
#[must_use]
pub fn introduction_mac(secret: &str, fleet: FleetId, key: &PublicKey) -> Sha256Hex {
    mac(secret, &format!("copal introduction v1\n{fleet}\n{key}"))
}

/// What a device signs to enrol: it holds the key it shows.
#[must_use]
pub fn enrol_message(fleet: FleetId, token_id: &str, key: &PublicKey, seal_key: &str) -> Vec<u8> {
    format!("copal enrol v1\n{fleet}\n{token_id}\n{key}\n{seal_key}").into_bytes()
}

/// What a device signs to log in.
#[must_use]
pub fn login_message(device: DeviceId, challenge: Sha256Hex) -> Vec<u8> {
    format!("copal login v1\n{device}\n{challenge}").into_bytes()
}

/// Whether two MACs are equal, in constant time.
#[must_use]
pub fn same_mac(a: &Sha256Hex, b: &Sha256Hex) -> bool {
    use subtle::ConstantTimeEq as _;
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

fn mac(secret: &str, message: &str) -> Sha256Hex {
    use hmac::{KeyInit as _, Mac as _};
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes())
        .expect("HMAC takes a key of any length");
    mac.update(message.as_bytes());
    Sha256Hex::from_bytes(mac.finalize().into_bytes().into())
}
