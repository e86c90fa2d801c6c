//! Samples of a device for whoever watches. One stream a device, however many watch; it is opened for the first of them and
//! closed after the last, and then the device stops.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use copal_protocol::{
    channel::StreamOf,
    ids::DeviceId,
    telemetry::{MAX_TELEMETRY, Summary},
};
use tokio::sync::broadcast::{self, Receiver, Sender};

use super::clean;
use crate::{
    app::{self, App},
    channel::{Came, CloudStream},
    error::Result,
};

/// Samples a watcher may be behind; what is older is passed over.
const BEHIND: usize = 4;
/// The longest line.
const LINE: usize = 2 * MAX_TELEMETRY;

/// What a watcher hears.
#[derive(Debug, Clone)]
pub(crate) enum Heard {
    /// How the device fares.
    Sample(Arc<Summary>),
    /// The device tells no more, for a code.
    End(Arc<str>),
}

/// Who is watched.
#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<DeviceId, Sender<Heard>>>);

impl Memory {
    fn feeds(&self) -> MutexGuard<'_, HashMap<DeviceId, Sender<Heard>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches a device.
///
/// # Errors
/// As opening a stream of it.
pub(crate) async fn watch(app: &App, device: DeviceId) -> Result<Receiver<Heard>> {
    if let Some(feed) = app.live.feeds().get(&device) {
        return Ok(feed.subscribe());
    }
    let stream = app.channels.open_stream(device, StreamOf::Metrics {}, "").await?;
    let mut feeds = app.live.feeds();
    // Somebody may have been faster; then this stream is closed again.
    if let Some(feed) = feeds.get(&device) {
        return Ok(feed.subscribe());
    }
    let (feed, receiver) = broadcast::channel(BEHIND);
    feeds.insert(device, feed.clone());
    drop(feeds);
    tokio::spawn(tell(app.clone(), device, stream, feed));
    Ok(receiver)
}

/// Passes samples on until nobody watches, or none come any more.
async fn tell(app: App, device: DeviceId, stream: CloudStream, feed: Sender<Heard>) {
    let mut lines = Vec::new();
    loop {
        let came = tokio::select! {
            came = stream.recv() => came,
            () = feed.closed() => {
                let mut feeds = app.live.feeds();
                // Somebody may have come just now.
                if feed.receiver_count() == 0 {
                    feeds.remove(&device);
                    return;
                }
                continue;
            }
        };
        match came {
            Came::Data(bytes) => {
                lines.extend_from_slice(&bytes);
                for summary in whole_lines(&mut lines) {
                    let summary = clean::summary(summary, app::now());
                    let _ = feed.send(Heard::Sample(Arc::new(summary)));
                }
            }
            Came::Closed(closed) => {
                app.live.feeds().remove(&device);
                let _ = feed.send(Heard::End(closed.code.chars().take(64).collect::<String>().into()));
                return;
            }
        }
    }
}

/// Takes the lines that are whole; what is none is left out.
fn whole_lines(lines: &mut Vec<u8>) -> Vec<Summary> {
    let Some(end) = lines.iter().rposition(|b| *b == b'\n') else {
        if lines.len() > LINE {
            lines.clear();
        }
        return Vec::new();
    };
    let whole: Vec<u8> = lines.drain(..=end).collect();
    whole
        .split(|b| *b == b'\n')
        .filter(|l| l.len() <= LINE)
        .filter_map(|l| serde_json::from_slice(l).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_become_whole_and_an_endless_one_is_given_up() {
        let mut lines = br#"{"for_s":5,"samples":1,"device":{}}"#.to_vec();
        assert!(whole_lines(&mut lines).is_empty());
        lines.extend_from_slice(b"\nnonsense\n{\"for_s\":6,\"samples\":1,\"device\":{}}\n{\"for");
        assert_eq!(whole_lines(&mut lines).iter().map(|s| s.for_s).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(lines, b"{\"for");
        lines.extend(vec![b'x'; LINE]);
        assert!(whole_lines(&mut lines).is_empty() && lines.is_empty());
    }
}
