//! Servers and what signs us in to them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Existing, Home, make_dir, read_private, read_toml, write_private, write_toml};
use crate::failure::{Failure, Result};

/// `config.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The server commands speak to, by its URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// Every server signed in to.
    pub servers: BTreeMap<String, Server>,
}

/// A server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Server {
    /// What its certificate chain must show; empty under a public CA.
    pub pins: Vec<String>,
    /// Who we are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

/// `credentials.json`: server URL → token.
pub type Credentials = BTreeMap<String, String>;

impl Home {
    /// Reads `config.toml`.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn config(&self) -> Result<Config> {
        read_toml(&self.path("config.toml"))
    }

    /// Writes `config.toml`.
    ///
    /// # Errors
    /// The system's own.
    pub fn save_config(&self, config: &Config) -> Result<()> {
        write_toml(&self.path("config.toml"), config)
    }

    /// Reads `credentials.json`.
    ///
    /// # Errors
    /// Where it cannot be read, or others can.
    pub fn credentials(&self) -> Result<Credentials> {
        let path = self.path("credentials.json");
        let Some(bytes) = read_private(&path)? else { return Ok(Credentials::new()) };
        serde_json::from_slice(&bytes).map_err(|e| Failure::local(format!("read {}", path.display()), e))
    }

    /// Writes `credentials.json`.
    ///
    /// # Errors
    /// The system's own.
    pub fn save_credentials(&self, credentials: &Credentials) -> Result<()> {
        let path = self.path("credentials.json");
        make_dir(&self.path(""))?;
        let bytes = serde_json::to_vec_pretty(credentials)
            .map_err(|e| Failure::local(format!("write {}", path.display()), e))?;
        write_private(&path, &bytes, Existing::Replace)
    }
}
