//! One device: its keys, its session with the cloud, what it remembers.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use copal_protocol::{
    device_api::{
        ChallengeRequest, ChallengeResponse, EnrolRequest, EnrolResponse, LoginRequest, LoginResponse,
    },
    enrol,
    ids::{DeviceId, Name, Sha256Hex},
    keys::SigningKey,
    seal::SealKey,
    verify::{AssignmentMark, DeviceIdentity},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::{
    Shared,
    http::{Answer, Call, Http, Refused},
    orders::Orders,
    pace::{Pace, jittered, random},
    report::Told,
    tell::{self, Outbox},
};

/// A token is renewed this long before it ends.
const EARLY: Duration = Duration::from_secs(120);
/// The longest wait between the start of the polls and that of the channel.
const APART: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Device {
    pub(crate) shared: Arc<Shared>,
    pub(crate) number: usize,
    pub(crate) key: SigningKey,
    pub(crate) id: DeviceId,
    http: Http,
    session: tokio::sync::Mutex<Session>,
    mind: Mutex<Mind>,
    /// So much time passed that the roots are due.
    pub(crate) aged: AtomicBool,
    /// It looked at itself: a report is due.
    pub(crate) checked: Notify,
    /// There may be something to tell by the channel.
    pub(crate) news: Notify,
    /// What makes polls come sooner, or lets them rest.
    pub(crate) nudges: watch::Sender<Nudges>,
}

#[derive(Default)]
struct Session {
    token: Option<(String, Instant)>,
    link: Option<String>,
}

/// What a device remembers.
#[derive(Default)]
pub(crate) struct Mind {
    pub(crate) mark: AssignmentMark,
    pub(crate) outbox: Outbox,
    pub(crate) orders: Orders,
    /// What runs, as far as it is pretended.
    pub(crate) services: Vec<Name>,
}

/// How things stand beside the poll, as the agent's synchronisation hears it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Nudges {
    /// A channel is up, and would tell of anything new.
    pub(crate) up: bool,
    /// What the channel last spoke of, and when.
    pub(crate) hinted: Option<(Sha256Hex, Instant)>,
    /// The newest Root the channel spoke of.
    pub(crate) root: Option<u64>,
    /// Rises when a poll is asked for at once.
    pub(crate) asked: u64,
}

impl Device {
    /// A new device, enrolled and logged in; it holds no connection then.
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
        let http = Http::new(&shared, number);
        // The same request again gives the same id, so one that was lost or came at a bad moment may be repeated.
        let mut tries = 0;
        let id = loop {
            tries += 1;
            let answer = post(&http, &shared, "/device/v1/enrol", &request).await;
            match answer {
                Ok(EnrolResponse { device_id, .. }) => break device_id,
                Err(error) if tries < 5 && Refused::of(&error).is_none_or(|r| r.later.is_some()) => {
                    let later = shared.seen.failed(&error).unwrap_or(Duration::from_secs(1));
                    tokio::time::sleep(later.mul_f64(1.0 + random())).await;
                }
                Err(error) => return Err(error),
            }
        };
        let device = Self {
            shared,
            number,
            key,
            id,
            http,
            session: tokio::sync::Mutex::default(),
            mind: Mutex::default(),
            aged: AtomicBool::new(false),
            checked: Notify::new(),
            news: Notify::new(),
            nudges: watch::Sender::new(Nudges::default()),
        };
        device.token().await?;
        // It is not there yet: as an agent it would go on, but whoever measures says when that is.
        device.http.close(Duration::ZERO);
        Ok(device)
    }

    /// Polls, holds a channel and tells of itself until dropped; begins at some moment within the window.
    pub(crate) async fn live(self: Arc<Self>, pace: Pace, window: Duration) {
        tokio::time::sleep(window.mul_f64(random())).await;
        {
            let mut mind = self.mind();
            mind.outbox.note(&tell::event("agent", "started", "the agent was started", &[]));
            mind.outbox.telemetry(&tell::facts(self.number));
        }
        // Where it was connected before, it is not any more.
        self.nudges.send_replace(Nudges::default());
        let mut tasks = JoinSet::new();
        let (told, hears) = watch::channel(Told::default());
        tasks.spawn(crate::sync::run(self.clone(), pace.clone(), told));
        tasks.spawn(crate::report::run(self.clone(), pace.checks, hears));
        let first = APART.min(window).mul_f64(random());
        tasks.spawn(crate::channel::run(self.clone(), first, pace.longest));
        tasks.spawn(self.tell_now_and_then(pace));
        while tasks.join_next().await.is_some() {}
    }

    /// Summaries, and events where there are to be any.
    async fn tell_now_and_then(self: Arc<Self>, pace: Pace) {
        let mut summary = tokio::time::Instant::now() + pace.first;
        // Devices that started together do not tell together.
        let mut after = pace.summary.mul_f64(random());
        let mut span = pace.first;
        let never = Duration::from_secs(1 << 30);
        loop {
            let event = jittered(pace.event.unwrap_or(never));
            tokio::select! {
                () = tokio::time::sleep_until(summary) => {
                    summary += after;
                    self.summarise(span);
                    (span, after) = (pace.summary, pace.summary);
                }
                () = tokio::time::sleep(event) => {
                    let message = "service web ended and was started again";
                    let note = tell::event("service", "restarted", message, &[("service", "web".into())]);
                    self.mind().outbox.note(&note);
                    self.news.notify_one();
                }
            }
        }
    }

    /// As after hours in which nothing happened: it logs in anew and walks the roots with what it does next.
    pub(crate) async fn age(&self) {
        self.session.lock().await.token = None;
        self.aged.store(true, Relaxed);
    }

    pub(crate) fn poll_now(&self) {
        self.nudges.send_modify(|nudges| nudges.asked += 1);
    }

    /// Tells how it fared in this time.
    pub(crate) fn summarise(&self, span: Duration) {
        let mut mind = self.mind();
        let summary = tell::summary(span.as_secs(), mind.services.iter());
        mind.outbox.telemetry(&summary);
        drop(mind);
        self.news.notify_one();
    }

    /// Lets go of connections that have idled for so long.
    pub(crate) fn let_go(&self, idle: Duration) {
        self.http.close(idle);
    }

    pub(crate) fn mind(&self) -> MutexGuard<'_, Mind> {
        self.mind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn identity(&self) -> DeviceIdentity {
        DeviceIdentity {
            fleet_id: self.shared.file.fleet_id,
            device_id: self.id,
            key_sha256: self.key.public().id(),
        }
    }

    /// A token that is good for a while; one caller at a time logs in.
    pub(crate) async fn token(&self) -> anyhow::Result<String> {
        let mut session = self.session.lock().await;
        if let Some((token, until)) = &session.token
            && Instant::now() < *until
        {
            return Ok(token.clone());
        }
        let asked = ChallengeRequest { device_id: self.id };
        let ChallengeResponse { challenge } =
            post(&self.http, &self.shared, "/device/v1/challenge", &asked).await?;
        let request = LoginRequest {
            device_id: self.id,
            challenge,
            signature: hex::encode(self.key.sign(&enrol::login_message(self.id, challenge))),
            refresh_link: session.link.clone(),
        };
        let answer: LoginResponse = post(&self.http, &self.shared, "/device/v1/login", &request).await?;
        let life = Duration::from_secs(answer.expires_in.clamp(60, 86_400));
        let until = Instant::now() + life.saturating_sub(EARLY).max(life / 2);
        session.link = Some(answer.refresh_link);
        session.token = Some((answer.token.clone(), until));
        self.shared.seen.logins.fetch_add(1, Relaxed);
        Ok(answer.token)
    }

    /// The cloud no longer takes this token.
    pub(crate) async fn drop_token(&self, refused: &str) {
        let mut session = self.session.lock().await;
        if session.token.as_ref().is_some_and(|(token, _)| token == refused) {
            session.token = None;
        }
    }

    /// Calls a device route; logs in again once where the token is not taken any more.
    pub(crate) async fn call(&self, call: Call<'_>) -> anyhow::Result<Answer> {
        let mut again = false;
        loop {
            let token = self.token().await?;
            let answer = self.http.call(&self.shared, Call { bearer: Some(&token), ..call.clone() }).await;
            let status = answer.as_ref().err().and_then(Refused::of).map(|refused| refused.status);
            if matches!(status, Some(401 | 403)) {
                self.drop_token(&token).await;
            }
            if status != Some(401) || again {
                return answer;
            }
            again = true;
        }
    }
}

async fn post<T: DeserializeOwned>(
    http: &Http,
    shared: &Arc<Shared>,
    route: &str,
    body: &impl Serialize,
) -> anyhow::Result<T> {
    let answer = http.call(shared, Call::post(route, serde_json::to_vec(body)?)).await?;
    serde_json::from_slice(&answer.body).with_context(|| format!("the answer of {route}"))
}

/// This machine's architecture, as OCI spells it.
pub(crate) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
