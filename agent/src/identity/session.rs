//! Enrolment and login.
//!
//! 1. Not enrolled: send the request (the same one each time, from keys already durable), keep the id durably.
//! 2. No token, or one that ends soon: fetch a challenge, sign it, show the refresh link of the last login.
//! 3. Keep the new refresh link durably *before* the token is used: the cloud takes the link shown as used only then, so
//!    a power cut between the two is no clone. Where the disk takes nothing any more (full, or remounted read-only) the
//!    token is used all the same: the next login shows the old link again, which the cloud still knows as the one before.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use copal_protocol::{
    config::DeviceFile,
    device_api::{
        ChallengeRequest, ChallengeResponse, EnrolRequest, EnrolResponse, LoginRequest, LoginResponse,
    },
    enrol,
    ids::DeviceId,
    json,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::Mutex;

use super::keys::Identity;
use crate::{
    cloud::{Answer, Blob, Call, Cloud, CloudError, NoSocket, Upgraded},
    settings,
    state::{StateDir, StateError},
};

const FILE: &str = "session";
const MAX_ANSWER: usize = 16 << 10;
/// A token is renewed this long before it ends.
const EARLY: Duration = Duration::from_secs(120);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The network, or a refusal; `code()` says which.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// The disk: what enrolling gave could not be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// The cloud's answer is no answer to the question.
    #[error("the cloud answered {what} with something else: {why}")]
    Answer {
        /// The route.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
}

impl SessionError {
    /// Stable code for the status.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Cloud(e) => e.code(),
            Self::State(e) => e.code(),
            Self::Answer { .. } => "E_TRANSPORT",
        }
    }

    /// Only a person can change this (revoked, pending, rejected, a clone, a spent token): ask seldom.
    #[must_use]
    pub fn needs_a_person(&self) -> bool {
        matches!(self, Self::Cloud(CloudError::Refused { status: 401 | 403 | 409, .. }))
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    refresh_link: Option<String>,
}

struct Token {
    text: Arc<str>,
    renew_at: Instant,
}

/// Gives the device's token, logging in (and first enrolling) as needed.
pub struct Session {
    cloud: Arc<Cloud>,
    state: Arc<StateDir>,
    file: DeviceFile,
    identity: std::sync::RwLock<Identity>,
    token: Mutex<Option<Token>>,
    hurry: u32,
}

impl Session {
    /// A session of this identity.
    #[must_use]
    pub fn new(cloud: Arc<Cloud>, state: Arc<StateDir>, file: DeviceFile, identity: Identity) -> Self {
        Self {
            cloud,
            state,
            file,
            identity: std::sync::RwLock::new(identity),
            token: Mutex::new(None),
            hurry: 1,
        }
    }

    /// Takes tokens for spent after so small a part of their time.
    #[must_use]
    pub fn hurried(self, times: u32) -> Self {
        Self { hurry: times.max(1), ..self }
    }

    /// Looks at the identity.
    pub fn identity<T>(&self, look: impl FnOnce(&Identity) -> T) -> T {
        look(&self.identity.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// A token good for at least two minutes; enrols and logs in where needed. One caller at a time does the work.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn token(&self) -> Result<Arc<str>, SessionError> {
        let mut slot = self.token.lock().await;
        if let Some(token) = &*slot
            && Instant::now() < token.renew_at
        {
            return Ok(token.text.clone());
        }
        let device = match self.identity(Identity::device_id) {
            Some(device) => device,
            None => self.enrol().await?,
        };
        let login = match self.login(device).await {
            Err(SessionError::Cloud(e)) if e.code() == "login_refused" => {
                // A cloud restored from before this device joined does not know it: the same keys enrol again.
                tracing::warn!(
                    "the cloud does not know this device any more; enrolling again with the same keys"
                );
                let device = self.enrol().await?;
                self.login(device).await?
            }
            result => result?,
        };
        let life = Duration::from_secs(login.expires_in.clamp(60, 86_400));
        let token = Token {
            text: login.token.into(),
            renew_at: Instant::now() + life.saturating_sub(EARLY).max(life / 2) / self.hurry,
        };
        let text = token.text.clone();
        *slot = Some(token);
        Ok(text)
    }

    /// The cloud no longer takes this token.
    pub async fn drop_token(&self, refused: &str) {
        let mut slot = self.token.lock().await;
        if slot.as_ref().is_some_and(|t| &*t.text == refused) {
            *slot = None;
        }
    }

    /// Calls a device route with the token; logs in again once where the cloud no longer takes it.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn call(&self, call: Call<'_>) -> Result<Answer, SessionError> {
        let token = self.token().await?;
        match self.cloud.call(call.clone().bearer(&token)).await {
            Err(e) if e.is_status(401) => self.drop_token(&token).await,
            Err(e) => {
                if e.is_status(403) {
                    // Revoked or no longer accepted: the next call asks at the door again.
                    self.drop_token(&token).await;
                }
                return Err(e.into());
            }
            Ok(answer) => return Ok(answer),
        }
        let token = self.token().await?;
        Ok(self.cloud.call(call.bearer(&token)).await?)
    }

    /// Starts reading a blob of the registry at byte `from`, as [`Self::call`].
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn blob(&self, path: &str, from: u64) -> Result<Blob, SessionError> {
        let token = self.token().await?;
        match self.cloud.blob(path, &token, from).await {
            Err(e) if e.is_status(401) => self.drop_token(&token).await,
            other => return Ok(other?),
        }
        let token = self.token().await?;
        Ok(self.cloud.blob(path, &token, from).await?)
    }

    /// Starts reading the bytes `from..to` of a blob of a device route, as [`Self::call`].
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn range(&self, path: &str, from: u64, to: u64) -> Result<Blob, SessionError> {
        let token = self.token().await?;
        match self.cloud.range(path, &token, from, to).await {
            Err(e) if e.is_status(401) => self.drop_token(&token).await,
            other => return Ok(other?),
        }
        let token = self.token().await?;
        Ok(self.cloud.range(path, &token, from, to).await?)
    }

    /// Opens a connection that speaks something else than HTTP, as [`Self::call`].
    ///
    /// # Errors
    /// Why there is none, and whether another try of the same kind could bring one.
    pub async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<Upgraded, NoSocket<SessionError>> {
        let token = self.token().await.map_err(NoSocket::Failed)?;
        match self.cloud.upgrade(path, &token, protocol).await {
            Err(NoSocket::Failed(e)) if e.is_status(401) => self.drop_token(&token).await,
            Err(NoSocket::Failed(e)) => {
                if e.is_status(403) {
                    self.drop_token(&token).await;
                }
                return Err(NoSocket::Failed(e.into()));
            }
            Err(NoSocket::NotTaken(why)) => return Err(NoSocket::NotTaken(why)),
            Ok(socket) => return Ok(socket),
        }
        let token = self.token().await.map_err(NoSocket::Failed)?;
        self.cloud.upgrade(path, &token, protocol).await.map_err(|e| match e {
            NoSocket::Failed(e) => NoSocket::Failed(e.into()),
            NoSocket::NotTaken(why) => NoSocket::NotTaken(why),
        })
    }

    /// The client beneath.
    #[must_use]
    pub fn cloud(&self) -> &Arc<Cloud> {
        &self.cloud
    }

    async fn enrol(&self) -> Result<DeviceId, SessionError> {
        let request = self.identity(|identity| enrol_request(&self.file, identity));
        let answer: EnrolResponse = self.post("/device/v1/enrol", &request).await?;
        tracing::info!(device = %answer.device_id, state = ?answer.state, "enrolled");
        self.identity
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .enrolled(answer.device_id)?;
        Ok(answer.device_id)
    }

    async fn login(&self, device_id: DeviceId) -> Result<LoginResponse, SessionError> {
        let answer: ChallengeResponse =
            self.post("/device/v1/challenge", &ChallengeRequest { device_id }).await?;
        let message = enrol::login_message(device_id, answer.challenge);
        let signature = hex::encode(self.identity(|i| i.signing().sign(&message)));
        let record: Record = match self.state.load(FILE) {
            Ok(record) => record.unwrap_or_default(),
            Err(e) => {
                // Without the link the cloud will say clone_suspected, and a person decides.
                tracing::error!(error = %e, "the refresh link is lost");
                Record::default()
            }
        };
        let request = LoginRequest {
            device_id,
            challenge: answer.challenge,
            signature,
            refresh_link: record.refresh_link,
        };
        let login: LoginResponse = self.post("/device/v1/login", &request).await?;
        if let Err(error) = self.state.save(FILE, &Record { refresh_link: Some(login.refresh_link.clone()) })
        {
            // A device that cannot be reached any more could not be mended from afar either.
            tracing::error!(%error, "the refresh link cannot be kept; the next login shows the one before it");
        }
        Ok(login)
    }

    async fn post<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &'static str,
        request: &Q,
    ) -> Result<A, SessionError> {
        let wrong = |why: String| SessionError::Answer { what: path, why };
        let body = serde_json::to_vec(request).map_err(|e| wrong(e.to_string()))?;
        let answer = self.cloud.call(Call::post(path, body, MAX_ANSWER)).await?;
        json::from_slice(&answer.body, 8).map_err(|e| wrong(e.to_string()))
    }
}

fn enrol_request(file: &DeviceFile, identity: &Identity) -> EnrolRequest {
    let key = identity.signing().public();
    let seal_key = identity.seal().public();
    let (token_id, secret) =
        enrol::split_token(&file.enrolment_token).expect("copal.json was checked when it was read");
    let message = enrol::enrol_message(file.fleet_id, token_id, &key, &seal_key);
    let introduction = file.introduction.as_deref().and_then(enrol::split_token);
    EnrolRequest {
        fleet_id: file.fleet_id,
        token_id: token_id.to_owned(),
        token_mac: enrol::token_mac(secret, file.fleet_id, token_id, &key, &seal_key),
        public_key: key,
        introduction_mac: introduction.map(|(_, s)| enrol::introduction_mac(s, file.fleet_id, &key)),
        introduction_id: introduction.map(|(id, _)| id.to_owned()),
        name: file.name.clone().unwrap_or_else(host_name).chars().take(63).collect(),
        arch: settings::arch().to_owned(),
        device_type: file.device_type.clone(),
        signature: hex::encode(identity.signing().sign(&message)),
        seal_key,
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| String::new(), |n| n.trim().to_owned())
}
