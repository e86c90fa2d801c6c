//! Bytes that requests to the cloud take on the line, as near as can be told from above TLS: what is said and answered, what
//! HTTP, TLS, TCP and IP lay around it, and handshakes. Blobs (images, operating systems) have no part in it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use http::HeaderMap;
use rustls::{
    NamedGroup,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
    },
    pki_types::ServerName,
};

use super::Call;

/// What a segment of TCP holds, and what TCP and IP lay around it.
const SEGMENT: (u64, u64) = (1428, 52);
/// What TLS lays around a record.
const RECORD: u64 = 22;
/// Setting up TCP and taking it down, and looking the name up.
const CONNECTION: u64 = 172 + 156 + 180;
/// A handshake of TLS 1.3 where the server shows a leaf and an intermediate (Let's Encrypt's are such), and one that goes on
/// with an earlier session. Sent, then received.
const WHOLE: (u64, u64) = (600, 2_700);
const RESUMED: (u64, u64) = (750, 650);
/// `GET  HTTP/1.1`, host, user agent, what is accepted, and the lengths of a body.
const HEAD: u64 = 150;
/// Sessions to go on with: a channel's and a poll's at a time.
const SESSIONS: usize = 4;

/// What a message of so many bytes takes on the line: its segments, and an acknowledgement for every other of them.
#[must_use]
pub fn on_the_line(bytes: u64) -> u64 {
    let whole = bytes + RECORD;
    let segments = whole.div_ceil(SEGMENT.0);
    whole + segments * SEGMENT.1 + segments.div_ceil(2) * SEGMENT.1
}

/// Bytes since somebody last looked.
#[derive(Debug, Default)]
pub struct Tally {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Tally {
    /// What was sent and received since the last call of this.
    pub fn take(&self) -> (u64, u64) {
        (self.sent.swap(0, Relaxed), self.received.swap(0, Relaxed))
    }

    /// A request is made; `more` are the headers beside those of every call.
    pub(super) fn said(&self, call: &Call<'_>, more: &HeaderMap) {
        let text = |value: Option<&str>, around: usize| value.map_or(0, |value| value.len() + around);
        let bytes = call.path.len()
            + text(call.bearer, 24)
            + text(call.etag, 19)
            + call.body.as_ref().map_or(0, |body| body.len() + 52)
            + headers(more);
        self.sent.fetch_add(on_the_line(HEAD + bytes as u64), Relaxed);
    }

    /// An answer, with what stands before its body.
    pub(crate) fn heard(&self, bytes: usize) {
        self.received.fetch_add(on_the_line(bytes as u64), Relaxed);
    }

    fn handshake(&self, resumed: bool) {
        let (sent, received) = if resumed { RESUMED } else { WHOLE };
        self.sent.fetch_add(sent + CONNECTION / 2, Relaxed);
        self.received.fetch_add(received + CONNECTION / 2, Relaxed);
    }
}

/// Bytes of an answer before its body.
pub(super) fn head(answer: &HeaderMap) -> usize {
    headers(answer) + 20
}

fn headers(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// TLS sessions to go on with; each new connection asks here for one, and so is counted.
pub(super) struct Sessions {
    known: ClientSessionMemoryCache,
    tally: Arc<Tally>,
}

impl Sessions {
    pub(super) fn new(tally: Arc<Tally>) -> Self {
        Self { known: ClientSessionMemoryCache::new(SESSIONS), tally }
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.known.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.known.kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.known.set_tls12_session(server, session);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.known.tls12_session(server)
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.known.remove_tls12_session(server);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.known.insert_tls13_ticket(server, ticket);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let ticket = self.known.take_tls13_ticket(server);
        self.tally.handshake(ticket.is_some());
        ticket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_around_a_message_is_counted_and_each_byte_once() {
        assert_eq!(on_the_line(0), 126);
        assert_eq!(on_the_line(1_406), 1_406 + 22 + 104, "one segment");
        assert_eq!(on_the_line(1_407), 1_407 + 22 + 156, "two, and one acknowledgement");
        let tally = Tally::default();
        let call = Call::post("/device/v1/report", vec![b'x'; 1000], 0).bearer("token");
        tally.said(&call, &HeaderMap::new());
        tally.heard(100);
        tally.handshake(false);
        let (sent, received) = tally.take();
        assert!((1_900..2_400).contains(&sent), "{sent}");
        assert!((2_900..3_400).contains(&received), "{received}");
        assert_eq!(tally.take(), (0, 0));
    }
}
