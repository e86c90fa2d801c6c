//! Whether images can be fetched, end to end: the smallest part of an image this device should run is fetched by the way every
//! image comes, and compared with what is signed.

use std::time::{Duration, Instant};

use copal_protocol::{
    diagnosis::{ProbeResult, Unit, Verdict},
    documents::ImageRef,
    ids::Digest,
};

use super::Link;
use crate::{
    cloud::Call,
    identity::{Identity, Session},
    settings,
    target::Store,
};

pub(super) const NAME: &str = "registry";
const PATIENCE: Duration = Duration::from_secs(9);
/// Milliseconds for a few KB beyond which images take hours.
const SLOW: i64 = 5000;
/// Bytes that are fetched at most; of a larger part only the beginning, which is then not compared.
const MOST: usize = 256 << 10;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A part of an image came, so many bytes in so many milliseconds.
    Fetched {
        /// Milliseconds.
        ms: i64,
        /// Bytes.
        bytes: usize,
        /// All of it came, and it is what is signed.
        compared: bool,
    },
    /// The registry lets this device in; there is no image to try.
    Empty {
        /// Milliseconds.
        ms: i64,
    },
    /// Something else than what is signed came.
    Other(String),
    /// It could not be fetched.
    Failed(String),
    /// It could not be tried.
    Untried(String),
}

/// Fetches.
pub async fn read(link: &Link) -> Found {
    let (session, store) = match link {
        Link::Own { session, store } if session.identity(Identity::device_id).is_some() => (session, store),
        Link::Own { .. } => return Found::Untried("this device is not enrolled yet".to_owned()),
        Link::None { why, .. } => return Found::Untried(why.clone()),
        Link::Agent { .. } => return Found::Untried("the running agent is to be asked".to_owned()),
    };
    let began = Instant::now();
    let found = tokio::time::timeout(PATIENCE, fetch(session, smallest(store).as_ref())).await;
    let taken = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
    match found {
        Ok(Found::Fetched { bytes, compared, .. }) => Found::Fetched { ms: taken, bytes, compared },
        Ok(Found::Empty { .. }) => Found::Empty { ms: taken },
        Ok(other) => other,
        Err(_) => Found::Failed(format!("not fetched within {} s", PATIENCE.as_secs())),
    }
}

/// Of all images this device should run, the one with the smallest description.
fn smallest(store: &Store) -> Option<ImageRef> {
    let platform = settings::platform();
    let apps = store.resolved().apps;
    let services = apps.values().flat_map(|app| app.release.services.values());
    services.filter_map(|s| s.images.get(&platform)).min_by_key(|image| image.config_size).cloned()
}

async fn fetch(session: &Session, image: Option<&ImageRef>) -> Found {
    let Some(image) = image else {
        return match session.call(Call::get("/v2/", 4096)).await {
            Ok(_) => Found::Empty { ms: 0 },
            Err(e) => Found::Failed(e.to_string()),
        };
    };
    let path = format!("/v2/{}/blobs/{}", image.repo, image.config_digest);
    let mut blob = match session.blob(&path, 0).await {
        Ok(blob) => blob,
        Err(e) => return Found::Failed(e.to_string()),
    };
    let mut bytes = Vec::new();
    loop {
        match blob.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(e) => return Found::Failed(e.to_string()),
        }
        if bytes.len() > MOST {
            return Found::Fetched { ms: 0, bytes: bytes.len(), compared: false };
        }
    }
    let shown = Digest::of(&bytes);
    if shown == image.config_digest {
        Found::Fetched { ms: 0, bytes: bytes.len(), compared: true }
    } else {
        Found::Other(format!(
            "{} bytes came whose digest is {shown}, and {} is signed",
            bytes.len(),
            image.config_digest
        ))
    }
}

/// Judges.
#[must_use]
pub fn judge(found: &Found) -> Vec<ProbeResult> {
    let result = |verdict, detail: &str| ProbeResult::new(NAME, verdict, detail);
    vec![match found {
        Found::Fetched { ms, bytes, compared } => {
            let how = if *compared { "came, and is what is signed" } else { "came" };
            let slow = *ms > SLOW;
            let verdict = if slow { Verdict::Warning } else { Verdict::Ok };
            let advice = if slow { "the line is slow: images come, and take long" } else { "" };
            let detail = format!("a part of an image ({bytes} bytes) {how}");
            result(verdict, &detail).value(*ms, Unit::Ms).threshold(SLOW).advice(advice)
        }
        Found::Empty { ms } => {
            result(Verdict::Ok, "lets this device in; no image is assigned to try").value(*ms, Unit::Ms).threshold(SLOW)
        }
        Found::Other(why) => result(Verdict::Failed, why)
            .advice("the agent takes no such image; look at what stands between device and cloud, then at the server's disk"),
        Found::Failed(why) => result(Verdict::Failed, why)
            .advice("where the cloud's result is well, the server lacks the image: push the release again, or look at its disk"),
        Found::Untried(why) => result(Verdict::Unknown, &format!("not tried: {why}")),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_fetched_is_judged() {
        for (found, verdict) in [
            (Found::Fetched { ms: 5000, bytes: 9, compared: true }, Verdict::Ok),
            (Found::Fetched { ms: 5001, bytes: 9, compared: true }, Verdict::Warning),
            (Found::Empty { ms: 3 }, Verdict::Ok),
            (Found::Other("other".to_owned()), Verdict::Failed),
            (Found::Failed("404".to_owned()), Verdict::Failed),
            (Found::Untried("none".to_owned()), Verdict::Unknown),
        ] {
            let result = judge(&found).remove(0);
            assert_eq!(result.verdict, verdict, "{result:?}");
            assert_eq!(
                result.advice.is_empty(),
                matches!(verdict, Verdict::Ok | Verdict::Unknown),
                "{result:?}"
            );
        }
    }
}
