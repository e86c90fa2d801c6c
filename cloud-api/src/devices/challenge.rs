//! Login challenges without memory of the unanswered: a challenge carries its time and a MAC over time and device, so
//! that asking for a million costs nothing to keep. Only those used for a login that worked are remembered, until they
//! have run out.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use copal_protocol::ids::{DeviceId, Sha256Hex};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

/// How long a challenge may be answered.
const GOOD_FOR: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Challenges {
    key: [u8; 32],
    start: Instant,
    used: Mutex<HashMap<Sha256Hex, Instant>>,
}

impl Challenges {
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        Ok(Self { key, start: Instant::now(), used: Mutex::default() })
    }

    /// A challenge for a device, known or not.
    pub(super) fn make(&self, device: DeviceId, now: Instant) -> Result<Sha256Hex, getrandom::Error> {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.clock(now).to_be_bytes());
        getrandom::fill(&mut bytes[8..16])?;
        let mac = self.mac(device, &bytes[..16]);
        bytes[16..].copy_from_slice(&mac);
        Ok(Sha256Hex::from_bytes(bytes))
    }

    /// Whether this server gave the challenge to this device less than a minute ago.
    pub(super) fn holds(&self, device: DeviceId, challenge: Sha256Hex, now: Instant) -> bool {
        let bytes = challenge.as_bytes();
        let (head, mac) = bytes.split_at(16);
        let given = u64::from_be_bytes(*head.first_chunk().expect("16 bytes have 8"));
        let right: bool = self.mac(device, head).ct_eq(mac).into();
        let age = self.clock(now).checked_sub(given);
        right && age.is_some_and(|ms| ms < GOOD_FOR.as_millis() as u64)
    }

    /// Spends a challenge; false when it was spent before.
    pub(super) fn spend(&self, challenge: Sha256Hex, now: Instant) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.insert(challenge, now).is_none()
    }

    pub(super) fn sweep(&self) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, at| at.elapsed() <= GOOD_FOR);
    }

    /// Milliseconds of the monotonic clock since this server began.
    fn clock(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    fn mac(&self, device: DeviceId, head: &[u8]) -> [u8; 16] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes a key of any length");
        mac.update(device.as_bytes());
        mac.update(head);
        let full: [u8; 32] = mac.finalize().into_bytes().into();
        *full.first_chunk().expect("32 bytes have 16")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_for_one_device_one_minute_and_one_login() {
        let challenges = Challenges::new().unwrap();
        let (a, b) = (DeviceId::from_bytes([1; 16]), DeviceId::from_bytes([2; 16]));
        let now = Instant::now();
        let challenge = challenges.make(a, now).unwrap();
        assert!(challenges.holds(a, challenge, now + Duration::from_secs(59)));
        assert!(!challenges.holds(a, challenge, now + Duration::from_secs(60)));
        assert!(!challenges.holds(b, challenge, now));
        assert!(!challenges.holds(a, Sha256Hex::of(b"made up"), now));
        assert!(!Challenges::new().unwrap().holds(a, challenge, now), "of another run");
        assert!(challenges.spend(challenge, now));
        assert!(!challenges.spend(challenge, now));
        assert_ne!(challenges.make(a, now).unwrap(), challenges.make(a, now).unwrap());
    }
}
