//! The channel of one device, over many connections.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use copal_protocol::{
    channel::{self, Class, CloudFrame, DeviceFrame, Hello, ping_payload},
    ids::Sha256Hex,
    telemetry::FEATURE,
};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    device::Device,
    http::Refused,
    link::{Channel, NoChannel},
    pace::random,
    tell::boot_id,
};

/// A ping that is not answered within this is tried once more.
const PONG: Duration = Duration::from_secs(20);
/// Up for so long, a channel counts as good.
const STABLE: Duration = Duration::from_secs(60);
/// Where only a person can change something.
const PERSON: Duration = Duration::from_secs(30);

/// Holds a channel until dropped; the first is opened after `first`, and waits between tries grow up to `longest`.
pub(crate) async fn run(device: Arc<Device>, first: Duration, longest: Duration) {
    let shared = &device.shared;
    let mut wait = first;
    let mut window = Duration::from_secs(60);
    let mut failures = 0_u32;
    loop {
        tokio::time::sleep(wait).await;
        let opened = match device.token().await {
            Ok(token) => match Box::pin(shared.link.open(shared, device.number, &token)).await {
                Err(NoChannel::LogIn) => {
                    device.drop_token(&token).await;
                    wait = Duration::ZERO;
                    continue;
                }
                opened => opened,
            },
            Err(error) => Err(NoChannel::Failed(error)),
        };
        let mut least = Duration::ZERO;
        match opened {
            Ok(channel) => {
                let since = Instant::now();
                shared.seen.channel(true);
                if let Some(told) = Box::pin(hold(&device, channel)).await {
                    window = told.clamp(Duration::from_secs(1), Duration::from_secs(3600));
                }
                shared.seen.channel(false);
                // Polls go on at once.
                device.nudges.send_if_modified(|nudges| std::mem::take(&mut nudges.up));
                if since.elapsed() >= STABLE {
                    failures = 0;
                }
            }
            Err(NoChannel::LogIn) => {}
            Err(NoChannel::Later(later)) => {
                shared.seen.refused.fetch_add(1, Relaxed);
                least = later;
            }
            Err(NoChannel::Failed(error)) => {
                if Refused::of(&error).is_some_and(Refused::needs_a_person) {
                    least = PERSON;
                }
                least = shared.seen.failed(&error).unwrap_or(least);
            }
        }
        let ceiling = window.saturating_mul(1 << failures.min(16)).min(window.max(longest));
        failures += 1;
        wait = least + ceiling.mul_f64(random());
    }
}

/// One channel, to its end; gives the window within which to come back, where the cloud told one.
async fn hold(device: &Device, mut channel: Channel) -> Option<Duration> {
    let shared = &device.shared;
    let (mut window, mut ping) = (None, Duration::from_secs(240));
    let hello = DeviceFrame::Hello(Hello {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id(),
        uptime_s: 1,
        features: vec![FEATURE.to_owned()],
        etag: device.mind().mark.sha256,
    });
    device.mind().outbox.restart();
    say(&mut channel, &hello).await.ok()?;
    let mut sent = Instant::now();
    // Pings without an answer.
    let mut open = 0;
    loop {
        let due = sent + if open > 0 { PONG } else { ping };
        let message = tokio::select! {
            message = channel.next() => message,
            () = device.news.notified() => {
                match tell(device, &mut channel, sent).await {
                    Ok(at) => sent = at,
                    Err(_) => return window,
                }
                continue;
            }
            () = tokio::time::sleep_until(due.into()) => {
                if open >= 2 || channel.send(Message::Ping(payload(ping))).await.is_err() {
                    return window;
                }
                (sent, open) = (Instant::now(), open + 1);
                continue;
            }
        };
        let Some(Ok(message)) = message else { return window };
        open = 0;
        let Message::Text(text) = message else { continue };
        let Ok(Some(frame)) = channel::read::<CloudFrame>(text.as_bytes()) else { continue };
        let said = match frame {
            CloudFrame::Welcome(welcome) => {
                window = Some(Duration::from_secs(welcome.reconnect_window_s.into()));
                ping = Duration::from_secs(welcome.ping_s.max(1).into());
                device.mind().outbox.welcomed(welcome.stored);
                hinted(device, welcome.etag, welcome.root, true);
                tell(device, &mut channel, sent).await
            }
            CloudFrame::Hint { etag, root } => {
                hinted(device, etag, root, false);
                Ok(sent)
            }
            CloudFrame::Stored(stored) => {
                let (class, new) = device.mind().outbox.stored(stored);
                let count = if class == Class::Event { &shared.seen.events } else { &shared.seen.telemetry };
                count.fetch_add(new, Relaxed);
                tell(device, &mut channel, sent).await
            }
            CloudFrame::Cmd(command) => {
                shared.seen.commands.fetch_add(1, Relaxed);
                answer(device, &mut channel, &command).await.map(|()| Instant::now())
            }
            CloudFrame::Open(open) => {
                let closed = channel::Closed::new(open.stream, "not_supported", "a simulated device");
                say(&mut channel, &DeviceFrame::Closed(closed)).await.map(|()| Instant::now())
            }
            CloudFrame::Bye { retry_within_s, .. } => {
                return Some(Duration::from_secs(retry_within_s.into()));
            }
            CloudFrame::Closed(_) | CloudFrame::Credit(_) | CloudFrame::Resize { .. } => Ok(sent),
        };
        match said {
            Ok(at) => sent = at,
            Err(_) => return window,
        }
    }
}

/// What an agent's ping carries.
fn payload(every: Duration) -> Bytes {
    ping_payload(0, u32::try_from(every.as_secs()).unwrap_or(u32::MAX)).to_vec().into()
}

/// The channel spoke of what the state route would serve.
fn hinted(device: &Device, etag: Option<Sha256Hex>, root: Option<u64>, welcome: bool) {
    let now = Instant::now();
    let is_news = etag.is_some() && etag != device.mind().mark.sha256;
    if is_news {
        device.shared.seen.hinted(now);
    }
    device.nudges.send_if_modified(|nudges| {
        let before = nudges.hinted.map(|(etag, _)| etag);
        let news = before != etag || nudges.root != root || (welcome && !nudges.up);
        if before != etag {
            nudges.hinted = etag.map(|etag| (etag, now));
        }
        nudges.root = root;
        nudges.up |= welcome;
        news
    });
}

/// Says what waits; when something was said last.
async fn tell(device: &Device, channel: &mut Channel, mut sent: Instant) -> anyhow::Result<Instant> {
    loop {
        let Some(batch) = device.mind().outbox.next() else { return Ok(sent) };
        say(channel, &DeviceFrame::Batch(batch)).await?;
        device.shared.seen.batches.fetch_add(1, Relaxed);
        sent = Instant::now();
    }
}

async fn answer(device: &Device, channel: &mut Channel, command: &channel::Command) -> anyhow::Result<()> {
    let root = device.shared.root();
    let (acks, polls) = device.mind().orders.take(&root, &device.identity(), command);
    if polls {
        device.poll_now();
    }
    let number = device.shared.seen.commands.load(Relaxed);
    for ack in acks {
        let (ends, done) = (ack.state.is_final(), ack.state == channel::AckState::Done);
        say(channel, &DeviceFrame::Ack(ack)).await?;
        if ends {
            // Its answer shows an agent that the cloud read what was before it.
            channel.send(Message::Ping(number.to_be_bytes().to_vec().into())).await?;
        }
        if done {
            device.shared.seen.done.fetch_add(1, Relaxed);
        }
    }
    Ok(())
}

async fn say(channel: &mut Channel, frame: &DeviceFrame) -> anyhow::Result<()> {
    Ok(channel.send(Message::text(channel::write(frame)?)).await?)
}
