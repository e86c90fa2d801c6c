//! What this machine knows of fleets by itself: their chain of Roots, and the introduction secrets of cards made here.
//! Nothing of this is taken from a server without verification.

use std::path::PathBuf;

use copal_protocol::{
    documents::{Document as _, Root},
    enrol,
    envelope::Envelope,
    ids::{AppId, FleetId},
    keys::PublicKey,
    verify::{self, Verified},
};
use serde::{Deserialize, Serialize};

use super::{Existing, Home, make_dir, read, read_private, write_private, write_toml};
use crate::failure::{Failure, Result};

/// `fleet.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetRecord {
    /// Its name on the server.
    pub slug: String,
    /// Its id, in every signed document.
    pub fleet_id: FleetId,
    /// Its app.
    pub app_id: AppId,
    /// The server it was made on.
    pub server: String,
    /// The key set that signs for it.
    pub keys: String,
}

/// The Roots this machine accepted, one after the other.
#[derive(Debug, Clone)]
pub struct Chain {
    /// Envelopes of version 1, 2, …
    pub envelopes: Vec<Envelope>,
    /// The last, verified through all before it.
    pub newest: Verified<Root>,
}

impl Chain {
    /// Begins with the owner's first Root.
    ///
    /// # Errors
    /// As [`verify::first_root`].
    pub fn begin(envelope: Envelope, fleet: FleetId) -> Result<Self, verify::Error> {
        let newest = verify::first_root(&envelope, fleet)?;
        Ok(Self { envelopes: vec![envelope], newest })
    }

    /// Takes the next.
    ///
    /// # Errors
    /// As [`verify::next_root`].
    pub fn push(&mut self, envelope: Envelope) -> Result<(), verify::Error> {
        self.newest = verify::next_root(&self.newest, &envelope)?;
        self.envelopes.push(envelope);
        Ok(())
    }

    /// The newest's envelope.
    #[must_use]
    pub fn last(&self) -> &Envelope {
        self.envelopes.last().expect("a chain begins with one")
    }
}

/// An introduction secret: known to the card and to this machine alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Its public name.
    pub id: String,
    /// The secret part.
    pub secret: String,
    /// The fleet.
    pub fleet_id: FleetId,
    /// What the card's maker called the device.
    #[serde(default)]
    pub name: Option<String>,
    /// Unix seconds.
    pub created_at: u64,
    /// Keys that have shown the secret: a device seen once and hidden later is missed.
    #[serde(default)]
    pub keys_seen: Vec<PublicKey>,
}

impl Introduction {
    /// Makes one.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn generate(fleet_id: FleetId, name: Option<String>, now: u64) -> Result<Self> {
        let mut bytes = [0; 40];
        getrandom::fill(&mut bytes).map_err(|e| Failure::local("make an introduction secret", e))?;
        let (id, secret) = (hex::encode(&bytes[..8]), hex::encode(&bytes[8..]));
        Ok(Self { id, secret, fleet_id, name, created_at: now, keys_seen: Vec::new() })
    }

    /// As it stands in `copal.json`.
    #[must_use]
    pub fn token(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// Whether `mac` shows that the holder of `key` had this card.
    #[must_use]
    pub fn vouches_for(&self, key: &PublicKey, mac: &copal_protocol::ids::Sha256Hex) -> bool {
        enrol::same_mac(&enrol::introduction_mac(&self.secret, self.fleet_id, key), mac)
    }
}

impl std::fmt::Debug for Introduction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Introduction({})", self.id)
    }
}

impl Home {
    fn fleet_dir(&self, fleet: FleetId) -> PathBuf {
        self.path("fleets").join(fleet.to_string())
    }

    /// Every fleet known here.
    ///
    /// # Errors
    /// Where a record cannot be read.
    pub fn fleet_records(&self) -> Result<Vec<FleetRecord>> {
        let Ok(entries) = std::fs::read_dir(self.path("fleets")) else { return Ok(Vec::new()) };
        let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        ids.filter_map(|id| self.fleet_record(id).transpose()).collect()
    }

    /// What is known of a fleet.
    ///
    /// # Errors
    /// Where the record cannot be read.
    pub fn fleet_record(&self, fleet: FleetId) -> Result<Option<FleetRecord>> {
        let path = self.fleet_dir(fleet).join("fleet.toml");
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let bad = |e: String| Failure::local(format!("read {}", path.display()), e);
        let text = String::from_utf8(bytes).map_err(|e| bad(e.to_string()))?;
        toml::from_str(&text).map(Some).map_err(|e| bad(e.to_string()))
    }

    /// Remembers a fleet.
    ///
    /// # Errors
    /// The system's own.
    pub fn save_fleet_record(&self, record: &FleetRecord) -> Result<()> {
        write_toml(&self.fleet_dir(record.fleet_id).join("fleet.toml"), record)
    }

    /// Puts away what is known of a fleet that the server has no more, so that another may have its name. Its Roots
    /// stay in the folder answered: a server restored from a back-up has the fleet again.
    ///
    /// # Errors
    /// The system's own.
    pub fn retire_fleet(&self, fleet: FleetId) -> Result<Option<PathBuf>> {
        let dir = self.fleet_dir(fleet);
        let kept = dir.with_extension("deleted");
        match std::fs::rename(&dir, &kept) {
            Ok(()) => Ok(Some(kept)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Failure::local(format!("rename {}", dir.display()), e)),
        }
    }

    /// The chain of a fleet, verified again from its first Root.
    ///
    /// # Errors
    /// Where a file is damaged or does not follow the one before it.
    pub fn chain(&self, fleet: FleetId) -> Result<Option<Chain>> {
        let dir = self.fleet_dir(fleet).join("roots");
        let mut chain: Option<Chain> = None;
        for version in 1_u64.. {
            let path = dir.join(format!("{version}.json"));
            let Some(bytes) = read(&path)? else { break };
            let refused = |e: verify::Error| {
                Failure::verify(format!("use the root {}", path.display()), &e)
                    .next("restore the folder from a back-up; the files are never changed by hand")
            };
            let envelope = Envelope::parse::<Root>(&bytes).map_err(refused)?;
            match &mut chain {
                None => chain = Some(Chain::begin(envelope, fleet).map_err(refused)?),
                Some(chain) => chain.push(envelope).map_err(refused)?,
            }
        }
        Ok(chain)
    }

    /// Keeps a Root of the chain. A version once kept is never replaced by another.
    ///
    /// # Errors
    /// The system's own, or where another Root of this version is kept.
    pub fn save_root(&self, fleet: FleetId, version: u64, envelope: &Envelope) -> Result<()> {
        let dir = self.fleet_dir(fleet).join("roots");
        make_dir(&dir)?;
        let path = dir.join(format!("{version}.json"));
        if let Some(kept) = read(&path)?
            && kept.len() <= Root::MAX_BYTES
            && Envelope::parse::<Root>(&kept)
                .is_ok_and(|kept| kept.payload_sha256() == envelope.payload_sha256())
        {
            return write_private(&path, &envelope.to_bytes(), Existing::Replace);
        }
        write_private(&path, &envelope.to_bytes(), Existing::Keep)
    }

    /// Forgets the newest Root, which the server refused.
    ///
    /// # Errors
    /// The system's own.
    pub fn forget_root(&self, fleet: FleetId, version: u64) -> Result<()> {
        let path = self.fleet_dir(fleet).join("roots").join(format!("{version}.json"));
        std::fs::remove_file(&path).map_err(|e| Failure::local(format!("remove {}", path.display()), e))
    }

    /// Keeps an introduction secret.
    ///
    /// # Errors
    /// The system's own.
    pub fn save_introduction(&self, introduction: &Introduction) -> Result<()> {
        let dir = self.path("introductions");
        make_dir(&dir)?;
        let bytes = serde_json::to_vec_pretty(introduction)
            .map_err(|e| Failure::local("write an introduction secret", e))?;
        write_private(&dir.join(format!("{}.json", introduction.id)), &bytes, Existing::Replace)
    }

    /// The introductions of a fleet, oldest first.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub fn introductions(&self, fleet: FleetId) -> Result<Vec<Introduction>> {
        let Ok(entries) = std::fs::read_dir(self.path("introductions")) else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.extension().is_none_or(|ending| ending != "json") {
                continue;
            }
            let Some(bytes) = read_private(&path)? else { continue };
            let introduction: Introduction = serde_json::from_slice(&bytes)
                .map_err(|e| Failure::local(format!("read {}", path.display()), e))?;
            if introduction.fleet_id == fleet {
                all.push(introduction);
            }
        }
        all.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(all)
    }

    /// Forgets a card that was never used. `false` where it is not known.
    ///
    /// # Errors
    /// The system's own.
    pub fn forget_introduction(&self, id: &str) -> Result<bool> {
        if !id.bytes().all(|b| b.is_ascii_hexdigit()) || id.is_empty() {
            return Ok(false);
        }
        let path = self.path("introductions").join(format!("{id}.json"));
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Failure::local(format!("remove {}", path.display()), e)),
        }
    }
}
