//! Whether the cloud answers this device, end to end: name, proxy, TLS, login, and a word only the cloud can say.

use std::time::{Duration, Instant};

use copal_protocol::{
    diagnosis::{ProbeResult, Unit, Verdict},
    documents::{Assignment, Document as _},
    envelope::Envelope,
    verify::{self, Code},
};

use super::Link;
use crate::{
    cloud::{Call, Cloud, CloudError},
    identity::{Identity, Session, SessionError},
    target::Store,
};

pub(super) const NAME: &str = "cloud";
/// An answer takes a handful of round trips at the first call; a worse line than this cannot carry images.
const PATIENCE: Duration = Duration::from_secs(9);
/// Milliseconds beyond which the line is bad.
const SLOW: i64 = 3000;
const STATE: &str = "/device/v1/state";

/// What was heard of the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// It took the device's login and answered, in so many milliseconds.
    Answer {
        /// Round trip, with login and connection where there were none.
        ms: i64,
        /// What it said, for people.
        said: &'static str,
    },
    /// It answered with an assignment that is refused.
    Refused {
        /// As above.
        ms: i64,
        /// Why.
        why: String,
    },
    /// It answers; whether it takes this device could not be tried.
    Anonymous {
        /// As above.
        ms: i64,
        /// Why not tried.
        why: String,
    },
    /// It refuses this device, or is busy: status and code.
    Problem {
        /// HTTP status.
        status: u16,
        /// What it said.
        said: String,
    },
    /// Something else answers in its place.
    Captive(String),
    /// Nothing answers.
    Silent(String),
    /// There is no address to try.
    Nowhere(String),
}

/// Asks.
pub async fn read(link: &Link) -> Heard {
    let began = Instant::now();
    let asking = async {
        match link {
            Link::Own { session, store } if session.identity(Identity::device_id).is_some() => {
                own(session, store).await
            }
            Link::Own { session, .. } => anonymous(session.cloud(), "this device is not enrolled yet").await,
            Link::None { cloud: Some(cloud), why, .. } => anonymous(cloud, why).await,
            Link::None { cloud: None, why, .. } => Heard::Nowhere(why.clone()),
            Link::Agent { .. } => Heard::Nowhere("the running agent is to be asked".to_owned()),
        }
    };
    let heard = tokio::time::timeout(PATIENCE, asking).await;
    let taken = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
    match heard {
        Ok(Heard::Answer { said, .. }) => Heard::Answer { ms: taken, said },
        Ok(Heard::Refused { why, .. }) => Heard::Refused { ms: taken, why },
        Ok(Heard::Anonymous { why, .. }) => Heard::Anonymous { ms: taken, why },
        Ok(other) => other,
        Err(_) => Heard::Silent(format!("no whole answer within {} s", PATIENCE.as_secs())),
    }
}

async fn own(session: &Session, store: &Store) -> Heard {
    let held = store.mark().sha256.map(|hash| hash.to_string());
    let call = Call { etag: held.as_deref(), ..Call::get(STATE, Assignment::MAX_BYTES * 2) };
    let answer = match session.call(call).await {
        Ok(answer) => answer,
        Err(error) => return failed(error),
    };
    match answer.status {
        304 => Heard::Answer { ms: 0, said: "answers: this device holds the newest assignment" },
        204 => Heard::Answer { ms: 0, said: "answers: nothing is assigned yet" },
        _ => {
            let Some(device) = session.identity(Identity::device) else {
                return Heard::Refused { ms: 0, why: "this device has no id".to_owned() };
            };
            let judged = Envelope::parse::<Assignment>(&answer.body)
                .and_then(|envelope| verify::assignment(&store.root(), &device, &store.mark(), &envelope));
            match judged {
                Ok(_) => Heard::Answer { ms: 0, said: "answers with a signed assignment" },
                Err(e) if e.code == Code::RootBehind => Heard::Answer {
                    ms: 0,
                    said: "answers with an assignment under a newer root, which is fetched first",
                },
                Err(e) => Heard::Refused { ms: 0, why: e.to_string() },
            }
        }
    }
}

/// Asks without a login: a cloud of ours says in its own words that one is needed.
async fn anonymous(cloud: &Cloud, why: &str) -> Heard {
    match cloud.call(Call::get(STATE, 4096)).await {
        Err(CloudError::Refused { status: 401, code, .. }) if code == "token_invalid" => {
            Heard::Anonymous { ms: 0, why: why.to_owned() }
        }
        Err(error) => failed(error.into()),
        Ok(_) => Heard::Captive("it answers a stranger, which the cloud does not".to_owned()),
    }
}

fn failed(error: SessionError) -> Heard {
    match error {
        SessionError::Cloud(CloudError::Transport { detail, captive: true }) => Heard::Captive(detail),
        SessionError::Cloud(CloudError::Refused { status, code, detail, .. }) => {
            // Whoever refuses without a code of ours is not the cloud, but something before it.
            Heard::Problem {
                status,
                said: if code.is_empty() { detail } else { format!("{code}: {detail}") },
            }
        }
        other => Heard::Silent(other.to_string()),
    }
}

/// Whether the cloud answers this device, or why not.
pub(crate) async fn reach(link: &Link) -> Result<(), String> {
    match read(link).await {
        Heard::Answer { .. } => Ok(()),
        other => Err(judge(&other).remove(0).detail),
    }
}

/// Judges.
#[must_use]
pub fn judge(heard: &Heard) -> Vec<ProbeResult> {
    let failed = |detail: &str| ProbeResult::new(NAME, Verdict::Failed, detail);
    let timed = |verdict, detail: &str, ms| {
        ProbeResult::new(NAME, verdict, detail).value(ms, Unit::Ms).threshold(SLOW)
    };
    vec![match heard {
        Heard::Answer { ms, said } if *ms > SLOW => timed(Verdict::Warning, said, *ms)
            .advice("the line is slow: look at signal and load; downloads go on where they were, and take long"),
        Heard::Answer { ms, said } => timed(Verdict::Ok, said, *ms),
        Heard::Refused { ms, why } => timed(Verdict::Failed, &format!("answers, and what it says is refused: {why}"), *ms)
            .advice("what runs goes on; look the code up in the protocol text, and at the cloud's keys"),
        Heard::Anonymous { ms, why } => {
            let detail = format!("a cloud answers; whether it takes this device was not tried: {why}");
            timed(Verdict::Unknown, &detail, *ms)
        }
        Heard::Problem { status: status @ (429 | 500..), said } => {
            failed(&format!("answers {status} {said}")).advice("look at the server, or at the proxy before it; the device tries again by itself")
        }
        Heard::Problem { status, said } => failed(&format!("refuses this device ({status} {said})")).advice(
            "a person decides: `copal device show` tells whether it is pending, rejected, revoked or taken for a clone",
        ),
        Heard::Captive(why) => failed(why).advice("sign this network in, or exempt the cloud's name from its sign-in page"),
        Heard::Silent(why) => {
            failed(why).advice("look at the results of network, dns, proxy and clock first; then whether port 443 to the cloud is open")
        }
        Heard::Nowhere(why) => ProbeResult::new(NAME, Verdict::Unknown, &format!("there is no address to try: {why}")),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_word_of_the_clouds_own_is_well() {
        let text = || "why".to_owned();
        for (heard, verdict, word) in [
            (Heard::Answer { ms: 3000, said: "answers" }, Verdict::Ok, "answers"),
            (Heard::Answer { ms: 3001, said: "answers" }, Verdict::Warning, "answers"),
            (Heard::Refused { ms: 1, why: text() }, Verdict::Failed, "is refused"),
            (Heard::Anonymous { ms: 1, why: text() }, Verdict::Unknown, "was not tried"),
            (
                Heard::Problem { status: 403, said: "device_revoked: x".to_owned() },
                Verdict::Failed,
                "device_revoked",
            ),
            (Heard::Problem { status: 503, said: text() }, Verdict::Failed, "503"),
            (Heard::Captive(text()), Verdict::Failed, "why"),
            (Heard::Silent(text()), Verdict::Failed, "why"),
            (Heard::Nowhere(text()), Verdict::Unknown, "no address"),
        ] {
            let result = judge(&heard).remove(0);
            assert_eq!(result.verdict, verdict, "{result:?}");
            assert!(result.detail.contains(word), "{result:?}");
            assert_eq!(
                result.advice.is_empty(),
                matches!(verdict, Verdict::Ok | Verdict::Unknown),
                "{result:?}"
            );
        }
    }
}
