//! The device's keys and what it joined, in two durable copies.

use std::sync::Arc;

use copal_protocol::{
    config::DeviceFile,
    ids::{DeviceId, FleetId, Sha256Hex},
    keys::SigningKey,
    seal::SealKey,
    verify::DeviceIdentity,
};
use serde::{Deserialize, Serialize};

use crate::state::{StateDir, StateError};

const FILE: &str = "identity";

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The system has no randomness.
    #[error("the system gives no random bytes to make keys of: {0}")]
    Random(getrandom::Error),
    /// `copal.json` is of another fleet than the one joined.
    #[error(
        "E_FLEET: this device belongs to fleet {joined}, copal.json names {asked}: to move it, empty the state folder (a factory reset)"
    )]
    OtherFleet {
        /// Belongs to.
        joined: FleetId,
        /// The file's.
        asked: FleetId,
    },
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Local name of this agent; containers are labelled with it.
    instance: Sha256Hex,
    /// Keys the configuration hash, so that it tells nothing about secrets.
    hash_key: Sha256Hex,
    sign_seed: Sha256Hex,
    seal_seed: Sha256Hex,
    fleet_id: FleetId,
    device_type: String,
    device_id: Option<DeviceId>,
}

/// The device's identity.
pub struct Identity {
    record: Record,
    signing: SigningKey,
    seal: SealKey,
    state: Arc<StateDir>,
}

impl Identity {
    /// Reads the identity, or makes it at the first start. `file` may be missing once the device has joined.
    ///
    /// # Errors
    /// [`IdentityError`]; a lost file is an error, never a new identity.
    pub fn open(state: Arc<StateDir>, file: &DeviceFile) -> Result<Self, IdentityError> {
        let record = if let Some(record) = state.load::<Record>(FILE)? {
            record
        } else {
            let record = Record {
                instance: random()?,
                hash_key: random()?,
                sign_seed: random()?,
                seal_seed: random()?,
                fleet_id: file.fleet_id,
                device_type: file.device_type.clone(),
                device_id: None,
            };
            // The keys are durable before anyone hears of them: repeating an enrolment is then the same enrolment.
            state.save(FILE, &record)?;
            record
        };
        if record.fleet_id != file.fleet_id {
            return Err(IdentityError::OtherFleet { joined: record.fleet_id, asked: file.fleet_id });
        }
        Ok(Self {
            signing: SigningKey::from_seed(record.sign_seed.as_bytes()),
            seal: SealKey::from_bytes(record.seal_seed.as_bytes()),
            record,
            state,
        })
    }

    /// The key that signs logins and reports.
    #[must_use]
    pub fn signing(&self) -> &SigningKey {
        &self.signing
    }

    /// The key secrets are sealed to.
    #[must_use]
    pub fn seal(&self) -> &SealKey {
        &self.seal
    }

    /// Local name of this agent: 32 hex digits.
    #[must_use]
    pub fn instance(&self) -> String {
        self.record.instance.to_string()[..32].to_owned()
    }

    /// Keys the configuration hash.
    #[must_use]
    pub fn hash_key(&self) -> [u8; 32] {
        *self.record.hash_key.as_bytes()
    }

    /// The fleet joined.
    #[must_use]
    pub fn fleet_id(&self) -> FleetId {
        self.record.fleet_id
    }

    /// The id the cloud gave; absent before enrolment.
    #[must_use]
    pub fn device_id(&self) -> Option<DeviceId> {
        self.record.device_id
    }

    /// As assignments must name this device; absent before enrolment.
    #[must_use]
    pub fn device(&self) -> Option<DeviceIdentity> {
        Some(DeviceIdentity {
            fleet_id: self.record.fleet_id,
            device_id: self.record.device_id?,
            key_sha256: self.signing.public().id(),
        })
    }

    /// The cloud gave this id; durable when it returns.
    ///
    /// # Errors
    /// [`StateError`]; the identity then stays as it was.
    pub fn enrolled(&mut self, device_id: DeviceId) -> Result<(), StateError> {
        let record = Record { device_id: Some(device_id), ..self.record.clone() };
        self.state.save(FILE, &record)?;
        self.record = record;
        Ok(())
    }
}

fn random() -> Result<Sha256Hex, IdentityError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(IdentityError::Random)?;
    Ok(Sha256Hex::from_bytes(bytes))
}
