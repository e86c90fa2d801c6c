//! One device: its keys, its session, its channel.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use copal_protocol::{
    channel::{self, Ack, AckState, CloudFrame, Command, DeviceFrame, Hello},
    device_api::{
        ChallengeRequest, ChallengeResponse, EnrolRequest, EnrolResponse, LoginRequest, LoginResponse,
    },
    documents::{Assignment, LockState, Report, SPEC},
    enrol,
    envelope::Envelope,
    ids::{DeviceId, Sha256Hex},
    keys::SigningKey,
    seal::SealKey,
    verify::{self, AssignmentMark, DeviceIdentity},
};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    Shared,
    http::Refused,
    link::{Channel, NoChannel},
};

/// See the module.
pub(crate) struct Device {
    number: usize,
    key: SigningKey,
    id: DeviceId,
    mind: Mutex<Mind>,
}

/// What a device remembers.
struct Mind {
    token: String,
    token_until: Instant,
    link: String,
    mark: AssignmentMark,
    committed: Vec<(copal_protocol::ids::AppId, Sha256Hex)>,
    reports: u64,
}

impl Device {
    /// A new device, enrolled and logged in.
    pub(crate) async fn enrol(shared: Arc<Shared>, number: usize) -> anyhow::Result<Self> {
        let file = &shared.file;
        let (token_id, secret) =
            enrol::split_token(&file.enrolment_token).context("the enrolment token is none")?;
        let key = SigningKey::generate()?;
        let seal_key = SealKey::generate()?.public();
        let public_key = key.public();
        let message = enrol::enrol_message(file.fleet_id, token_id, &public_key, &seal_key);
        let request = EnrolRequest {
            fleet_id: file.fleet_id,
            token_id: token_id.to_owned(),
            token_mac: enrol::token_mac(secret, file.fleet_id, token_id, &public_key, &seal_key),
            signature: hex::encode(key.sign(&message)),
            public_key,
            seal_key,
            introduction_mac: None,
            introduction_id: None,
            name: format!("sim-{number:05}"),
            arch: arch().to_owned(),
            device_type: file.device_type.clone(),
        };
        let EnrolResponse { device_id: id, .. } = shared.http.post("/device/v1/enrol", &request).await?;
        let (token, token_until, link) = login(&shared, &key, id, None).await?;
        let mind = Mind {
            token,
            token_until,
            link,
            mark: AssignmentMark::default(),
            committed: Vec::new(),
            reports: 0,
        };
        Ok(Self { number, key, id, mind: Mutex::new(mind) })
    }

    fn mind(&self) -> std::sync::MutexGuard<'_, Mind> {
        self.mind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a channel until dropped; the first is opened at some moment within the window.
    pub(crate) async fn stay_connected(&self, shared: &Arc<Shared>, mut window: Duration) {
        let mut failures = 0_u32;
        loop {
            tokio::time::sleep(window.mul_f64(random())).await;
            let opened = match self.token(shared).await {
                Ok(token) => shared.link.open(shared, self.number, &token).await,
                Err(error) => Err(match error.downcast_ref::<Refused>().and_then(|refused| refused.later) {
                    Some(later) => NoChannel::Later(later),
                    None => NoChannel::Failed(error),
                }),
            };
            match opened {
                Ok(channel) => {
                    let since = Instant::now();
                    let told = self.hold(shared, channel).await;
                    shared.seen.channel(false);
                    failures = if since.elapsed() > Duration::from_secs(60) { 0 } else { failures + 1 };
                    window = told.max(Duration::from_secs(1) * 2_u32.pow(failures.min(8)));
                }
                Err(why) => {
                    failures += 1;
                    window = Duration::from_secs(1) * 2_u32.pow(failures.min(8));
                    match why {
                        NoChannel::LogIn => {
                            self.mind().token_until = Instant::now();
                            window = Duration::ZERO;
                        }
                        NoChannel::Later(later) => {
                            shared.seen.refused.fetch_add(1, Relaxed);
                            tokio::time::sleep(later).await;
                        }
                        NoChannel::Failed(error) => shared.seen.failed(&error),
                    }
                }
            }
        }
    }

    /// One channel, to its end; gives the window within which to come back.
    async fn hold(&self, shared: &Arc<Shared>, mut channel: Channel) -> Duration {
        shared.seen.channel(true);
        let mut back = Duration::from_secs(60);
        let mut ping = Duration::from_secs(240);
        let hello = DeviceFrame::Hello(Hello {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: "5".repeat(32),
            uptime_s: 1,
            features: Vec::new(),
            etag: self.mind().mark.sha256,
        });
        if say(&mut channel, &hello).await.is_err() {
            return back;
        }
        loop {
            let message = tokio::select! {
                message = channel.next() => message,
                () = tokio::time::sleep(ping) => {
                    if channel.send(Message::Ping(Vec::new().into())).await.is_err() {
                        return back;
                    }
                    continue;
                }
            };
            let Some(Ok(message)) = message else { return back };
            let Message::Text(text) = message else { continue };
            let Ok(Some(frame)) = channel::read::<CloudFrame>(text.as_bytes()) else { continue };
            match frame {
                CloudFrame::Welcome(welcome) => {
                    back = Duration::from_secs(welcome.reconnect_window_s.into());
                    ping = Duration::from_secs(welcome.ping_s.max(1).into());
                    self.hinted(shared, welcome.etag).await;
                }
                CloudFrame::Hint { etag, .. } => self.hinted(shared, etag).await,
                CloudFrame::Cmd(Command { id, .. }) => {
                    let ack = Ack {
                        id,
                        state: AckState::Rejected,
                        code: Some("not_supported".to_owned()),
                        message: "a simulated device".to_owned(),
                        result: None,
                    };
                    if say(&mut channel, &DeviceFrame::Ack(ack)).await.is_err() {
                        return back;
                    }
                }
                CloudFrame::Bye { retry_within_s, .. } => {
                    return Duration::from_secs(retry_within_s.into());
                }
                _ => {}
            }
        }
    }

    /// Something may be new: fetch it, verify it, pretend to run it, say so.
    async fn hinted(&self, shared: &Arc<Shared>, etag: Option<Sha256Hex>) {
        if etag.is_none() || etag == self.mind().mark.sha256 {
            return;
        }
        let hinted = Instant::now();
        shared.seen.hinted(hinted);
        if let Err(error) = self.follow(shared, hinted).await {
            shared.seen.failed(&error);
        }
    }

    async fn follow(&self, shared: &Arc<Shared>, hinted: Instant) -> anyhow::Result<()> {
        let token = self.token(shared).await?;
        let (held, mark) = {
            let mind = self.mind();
            (mind.mark.sha256, mind.mark)
        };
        let Some(bytes) = shared.http.state(&token, held).await? else { return Ok(()) };
        let identity = DeviceIdentity {
            fleet_id: shared.file.fleet_id,
            device_id: self.id,
            key_sha256: self.key.public().id(),
        };
        let envelope = Envelope::parse::<Assignment>(&bytes)?;
        let assignment = verify::assignment(&shared.root, &identity, &mark, &envelope)?;
        shared.seen.verified(hinted.elapsed());
        let report = {
            let mut mind = self.mind();
            mind.mark = AssignmentMark::of(&assignment);
            mind.committed = assignment.apps.iter().map(|app| (app.app_id, app.sha256)).collect();
            mind.reports += 1;
            self.report(shared, &mind)
        };
        shared.seen.applied();
        let signed = Envelope::sign(&report, &[&self.key])?;
        if shared.http.report(&token, signed.to_bytes()).await? {
            shared.seen.reports.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    fn report(&self, shared: &Shared, mind: &Mind) -> Report {
        Report {
            spec: SPEC,
            fleet_id: shared.file.fleet_id,
            device_id: self.id,
            boot_id: "5".repeat(32),
            report_counter: mind.reports,
            root_version: shared.root.version,
            root_sha256: shared.root.sha256(),
            lock: LockState::Open,
            assign_epoch: mind.mark.assign_epoch,
            seq_accepted: mind.mark.seq,
            seq_applied: mind.mark.seq,
            unfresh: false,
            running: mind.committed.iter().map(|(app, _)| (*app, Default::default())).collect(),
            committed: mind.committed.iter().copied().collect(),
            reason: None,
            progress: None,
            host: None,
            agent: None,
            health: None,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            os_version: "simulated".to_owned(),
            arch: arch().to_owned(),
            time: copal_tls::system_clock()(),
            ext: None,
        }
    }

    /// A token that is good for a while.
    async fn token(&self, shared: &Shared) -> anyhow::Result<String> {
        let link = {
            let mind = self.mind();
            if mind.token_until > Instant::now() {
                return Ok(mind.token.clone());
            }
            mind.link.clone()
        };
        let (token, until, link) = login(shared, &self.key, self.id, Some(link)).await?;
        let mut mind = self.mind();
        (mind.token, mind.token_until, mind.link) = (token.clone(), until, link);
        Ok(token)
    }
}

async fn login(
    shared: &Shared,
    key: &SigningKey,
    id: DeviceId,
    link: Option<String>,
) -> anyhow::Result<(String, Instant, String)> {
    let ChallengeResponse { challenge } =
        shared.http.post("/device/v1/challenge", &ChallengeRequest { device_id: id }).await?;
    let request = LoginRequest {
        device_id: id,
        challenge,
        signature: hex::encode(key.sign(&enrol::login_message(id, challenge))),
        refresh_link: link,
    };
    let answer: LoginResponse = shared.http.post("/device/v1/login", &request).await?;
    let until = Instant::now() + Duration::from_secs(answer.expires_in.saturating_sub(120));
    Ok((answer.token, until, answer.refresh_link))
}

async fn say(channel: &mut Channel, frame: &DeviceFrame) -> anyhow::Result<()> {
    Ok(channel.send(Message::text(channel::write(frame)?)).await?)
}

/// Between 0 and 1.
fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness all come at once, which is a load, too.
    let _ = getrandom::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

/// This machine's architecture, as OCI spells it.
fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
