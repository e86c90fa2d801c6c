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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::OwnerKeys;

    #[test]
    fn a_token_is_two_plain_parts() {
        assert_eq!(split_token("id-1.secret_2"), Some(("id-1", "secret_2")));
        let long = format!("id.{}", "a".repeat(129));
        for bad in ["", ".", "id", "id.", ".secret", "a.b.c", "i d.secret", "id.sec\nret", "id.é", &long] {
            assert_eq!(split_token(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_token_proof_is_good_for_one_fleet_token_and_pair_of_keys() {
        let keys = OwnerKeys::fixed();
        let (key, fleet) = (keys.device.public(), keys.fleet_id);
        let proof = token_mac("secret", fleet, "id", &key, "seal");
        assert!(same_mac(&proof, &token_mac("secret", fleet, "id", &key, "seal")));
        for other in [
            token_mac("secres", fleet, "id", &key, "seal"),
            token_mac("secret", OwnerKeys::numbered(1).fleet_id, "id", &key, "seal"),
            token_mac("secret", fleet, "ie", &key, "seal"),
            token_mac("secret", fleet, "id", &keys.root.public(), "seal"),
            token_mac("secret", fleet, "id", &key, "other"),
            introduction_mac("secret", fleet, &key),
        ] {
            assert!(!same_mac(&proof, &other));
        }
    }

    #[test]
    fn an_enrolment_signature_is_never_a_login() {
        let keys = OwnerKeys::fixed();
        let enrol = enrol_message(keys.fleet_id, "id", &keys.device.public(), "seal");
        let login = login_message(keys.device_id, Sha256Hex::of(b"challenge"));
        let signature = keys.device.sign(&enrol);
        assert!(keys.device.public().verifies(&enrol, &signature));
        assert!(!keys.device.public().verifies(&login, &signature));
        // Nor is either a document: those begin with DSSE's own word.
        assert!(!enrol.starts_with(b"DSSE") && !login.starts_with(b"DSSE"));
    }
}
