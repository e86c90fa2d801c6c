//! The same channel where no WebSocket passes: `POST /device/v1/exchange`, held by the cloud until it has something to say. What
//! the device has to say goes in a short call of its own, meanwhile, and counts as taken when that is answered.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use copal_protocol::{
    channel::{self, CloudFrame, DeviceFrame, Exchange, MAX_DEPTH, MAX_FRAMES, Welcome},
    json,
    telemetry::Sheds,
};
use serde_json::Value;

use super::{End, Line, talk};
use crate::{
    cloud::{Call, CloudError, random},
    identity::{Session, SessionError},
};

/// Bytes of an answer.
const MOST: usize = 1 << 20;
/// Acks in one call: half of what it may hold in bytes, however large each is.
pub(super) const ACKS: usize = 2;
/// After a call that was not held for long and brought nothing; twice as long for each in a row that was not held at all, so many times.
const SHORTLY: Duration = Duration::from_secs(2);
const SELDOM: u32 = 4;

/// Talks until `until`, when it is time to try a WebSocket again.
pub(super) async fn run(line: &mut Line, until: Instant) -> End {
    line.talk.acks.restart();
    line.talk.outbox.restart();
    let session = line.session.clone();
    let mut up = None;
    let mut hello = Some(line.talk.hello(false));
    // Calls in a row that were answered at once, with nothing.
    let mut early = 0_u32;
    loop {
        if Instant::now() >= until {
            return End::Again;
        }
        if up.is_some() && line.tell_budget() >= Sheds::Polls {
            return End::Budget;
        }
        let (acks, last) = line.talk.acks.take(ACKS);
        if hello.is_some() || last.is_some() {
            let frames = hello.take().into_iter().chain(acks.into_iter().map(DeviceFrame::Ack)).collect();
            match say(line, &session, frames, last).await {
                Ok(_) => up.get_or_insert_with(Instant::now),
                Err(over) => return over.end(up),
            };
            continue;
        }
        if let Some(batch) = line.batch() {
            match say(line, &session, vec![batch], None).await {
                Ok(_) => continue,
                Err(over) => return over.end(up),
            }
        }
        let began = Instant::now();
        let wait_s = line.pace.wait_s;
        // A call of ours lets the held one go.
        let mut spoke = false;
        let mut held = pin!(exchange(&session, Vec::new(), wait_s));
        let answer = loop {
            let (acks, outbox) = (line.talk.acks.clone(), line.talk.outbox.clone());
            tokio::select! {
                answer = &mut held => break answer,
                () = outbox.news() => {
                    while let Some(batch) = line.batch() {
                        spoke = true;
                        if let Err(over) = say(line, &session, vec![batch], None).await {
                            return over.end(up);
                        }
                    }
                }
                () = acks.news() => {
                    let (acks, last) = line.talk.acks.take(ACKS);
                    spoke |= last.is_some();
                    let frames: Vec<DeviceFrame> = acks.into_iter().map(DeviceFrame::Ack).collect();
                    if last.is_some() && let Err(over) = say(line, &session, frames, last).await {
                        return over.end(up);
                    }
                }
            }
        };
        let brought = match answer.map_err(Over::Session).and_then(|frames| take(line, frames)) {
            Ok(brought) => brought,
            Err(over) => return over.end(up),
        };
        if !brought.any && !spoke && began.elapsed() + SHORTLY < Duration::from_secs(wait_s) {
            // A proxy that lets go early, or a cloud that has no place for it: no asking in a circle.
            early = if began.elapsed() < SHORTLY { early + 1 } else { 0 };
            let wait = SHORTLY * 2_u32.pow(early.min(SELDOM));
            tokio::time::sleep(wait.mul_f64(0.5 + (random() >> 11) as f64 / (1_u64 << 54) as f64)).await;
        } else {
            early = 0;
        }
    }
}

pub(super) enum Over {
    Session(SessionError),
    Bye(talk::Bye),
}

impl Over {
    pub(super) fn end(self, up: Option<Instant>) -> End {
        let up = up.map(|since| since.elapsed());
        match self {
            Self::Bye(bye) => End::Bye(bye, up.unwrap_or_default()),
            Self::Session(SessionError::Cloud(CloudError::Refused {
                status: status @ (404 | 405), ..
            })) => End::NotTaken(format!("the cloud knows no exchange of frames ({status})")),
            Self::Session(error) => match up {
                Some(up) => End::Broken(error.to_string(), up),
                None => End::Refused(error),
            },
        }
    }
}

/// What was answered.
#[derive(Debug, Default)]
pub(super) struct Brought {
    pub(super) any: bool,
    pub(super) welcome: Option<Welcome>,
    pub(super) commands: bool,
}

/// Says frames, the last ack among them number `last`, and takes in what is answered at once.
pub(super) async fn say(
    line: &mut Line,
    session: &Session,
    frames: Vec<DeviceFrame>,
    last: Option<u64>,
) -> Result<Brought, Over> {
    let answer = exchange(session, frames, 0).await.map_err(Over::Session)?;
    last.into_iter().for_each(|last| line.talk.acks.taken(last));
    take(line, answer)
}

/// One call, counted as every request is; its frames, those of a later version left aside.
async fn exchange(
    session: &Session,
    frames: Vec<DeviceFrame>,
    wait_s: u64,
) -> Result<Vec<CloudFrame>, SessionError> {
    let wrong = |why: String| SessionError::Answer { what: "/device/v1/exchange", why };
    let body = serde_json::to_vec(&Exchange { frames }).map_err(|e| wrong(e.to_string()))?;
    let path = format!("/device/v1/exchange?wait={wait_s}");
    let call = Call { wait: Duration::from_secs(wait_s), ..Call::post(&path, body, MOST) };
    let answer = session.call(call).await?;
    let read: Exchange<Value> =
        json::from_slice(&answer.body, MAX_DEPTH + 2).map_err(|e| wrong(e.to_string()))?;
    if read.frames.len() > MAX_FRAMES {
        return Err(wrong(format!("{} frames at once", read.frames.len())));
    }
    let mut frames = Vec::new();
    for frame in read.frames {
        let text = frame.to_string();
        frames.extend(channel::read(text.as_bytes()).map_err(|e| wrong(e.to_string()))?);
    }
    Ok(frames)
}

/// Takes in what was answered.
fn take(line: &mut Line, frames: Vec<CloudFrame>) -> Result<Brought, Over> {
    let mut brought = Brought { any: !frames.is_empty(), ..Brought::default() };
    for frame in frames {
        brought.commands |= matches!(frame, CloudFrame::Cmd(_));
        let taken = line.talk.take(frame);
        if let Some(bye) = taken.bye {
            return Err(Over::Bye(bye));
        }
        if let Some(welcome) = taken.welcome {
            line.welcome(&welcome);
            brought.welcome = Some(welcome);
        }
        // Streams need a WebSocket; the cloud knows that.
    }
    Ok(brought)
}
