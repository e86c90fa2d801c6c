//! Terminals as people and pages have them, and operators that sign by hand.

use std::{collections::BTreeMap, fs, process::Command};

use copal_protocol::{
    documents::{SPEC, TerminalGrant, TerminalOffer},
    envelope::Envelope,
    keys::SigningKey,
    terminal::{self, Line, RecordKind, Records, record},
};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use crate::{
    binary,
    repo::{STAY, Services},
    world::World,
};

pub const SHORT: &str = "labels: {io.copal.update.healthy-after: 1s}\nstop_grace_period: 1s";

/// A device that runs a service with a shell, and one whose image has none.
pub async fn world_with(more: &[&str]) -> (World, String) {
    let world = World::with_fleet(1, more).await;
    Services { services: &[("app", STAY, SHORT), ("bare", STAY, SHORT)] }.write_to(&world.repo);
    let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"/bin\"]\nCOPY run.sh /run.sh\n\
                      CMD [\"/bin/busybox\", \"sh\", \"/run.sh\"]\n";
    world.repo.write("app/Dockerfile", dockerfile);
    world.push_and_settle("works").await;
    let name = world.devices[0].prefix.clone();
    (world, name)
}

/// `copal` of this owner, to be run in a terminal.
pub fn copal(world: &World, args: &[&str]) -> Command {
    let mut command = Command::new(binary("copal"));
    command
        .args(args)
        .env("COPAL_HOME", world.owner.home.path())
        .env_remove("COPAL_TOKEN")
        .env_remove("COPAL_URL");
    command
}

/// The newest session.
pub async fn newest(world: &World) -> Value {
    world.cloud.get("/fleets/porch/sessions?limit=1").await["items"][0].clone()
}

/// The operator's key, out of the file the CLI made.
pub fn operator_key(world: &World) -> SigningKey {
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
    for file in fs::read_dir(world.owner.home.path().join("keys/owner")).unwrap().flatten() {
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        if text.contains("role: operator") {
            let seed = text.split("\n\n").nth(1).unwrap().lines().next().unwrap();
            return SigningKey::from_seed(&BASE64.decode(seed).unwrap().try_into().unwrap());
        }
    }
    panic!("no operator key");
}

/// What an operator may sign for an offer.
pub fn grant(offer: &TerminalOffer, operator_key: String) -> TerminalGrant {
    TerminalGrant {
        spec: SPEC,
        fleet_id: offer.fleet_id,
        device_id: offer.device_id,
        session_id: offer.session_id,
        target: offer.target.clone(),
        challenge: offer.challenge,
        device_key: offer.device_key.clone(),
        operator_key,
        operator: "anna".to_owned(),
        reason: "by hand".to_owned(),
        max_s: 60,
        max_bytes: 1 << 20,
        issued_at: 1,
        ext: None,
    }
}

/// A grant as it goes over the line.
pub fn signed(grant: &TerminalGrant, key: &SigningKey) -> Vec<u8> {
    record(RecordKind::Grant, &Envelope::sign(grant, &[key]).unwrap().to_bytes())
}

/// Asks for a terminal in `app` by hand: the device's offer, and this end of the line with its key.
pub async fn opening(world: &World, device: &str) -> (Web, TerminalOffer, Line, String) {
    let body = json!({"service": "app", "reason": "by hand"});
    let session = world.cloud.call("POST", &format!("/fleets/porch/devices/{device}/terminal"), body).await;
    let headers = BTreeMap::from([("authorization", format!("Bearer {}", world.cloud.token))]);
    let mut web = Web(attach(world, session["path"].as_str().unwrap(), headers).await.unwrap());
    assert_eq!(web.text().await["t"], "opened");
    let mut records = Records::default();
    let offer = loop {
        if let Some((RecordKind::Offer, body)) = records.whole().unwrap() {
            break body;
        }
        records.push(&web.bytes().await);
    };
    let envelope = Envelope::parse::<TerminalOffer>(&offer).unwrap();
    let offer: TerminalOffer = serde_json::from_slice(envelope.payload()).unwrap();
    let (key, line) = terminal::answer(&offer).unwrap();
    (web, offer, line, key)
}

/// A terminal's WebSocket, as a page has it.
pub struct Web(pub WebSocketStream<tokio::net::TcpStream>);

/// Opens one; the status where it is refused.
pub async fn attach(
    world: &World,
    path: &str,
    headers: BTreeMap<&'static str, String>,
) -> Result<WebSocketStream<tokio::net::TcpStream>, u16> {
    use tokio_tungstenite::tungstenite::{Error, client::IntoClientRequest as _};
    let url = format!("{}{path}", world.cloud.url.replace("http://", "ws://"));
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "copal.terminal.v1".parse().unwrap());
    for (name, value) in headers {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let tcp = tokio::net::TcpStream::connect(world.cloud.address()).await.unwrap();
    match tokio_tungstenite::client_async(request, tcp).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(answer)) => Err(answer.status().as_u16()),
        Err(e) => panic!("{e}"),
    }
}

impl Web {
    pub async fn next(&mut self) -> Message {
        let next = tokio::time::timeout(std::time::Duration::from_secs(60), self.0.next());
        next.await.expect("something comes within 60 s").expect("it is open").unwrap()
    }

    pub async fn say(&mut self, bytes: &[u8]) {
        self.0.send(Message::Binary(bytes.to_vec().into())).await.unwrap();
    }

    pub async fn text(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.next().await {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    pub async fn bytes(&mut self) -> Vec<u8> {
        loop {
            match self.next().await {
                Message::Binary(bytes) => return bytes.into(),
                Message::Text(text) => panic!("{text}"),
                _ => {}
            }
        }
    }

    pub async fn shows(&mut self, wanted: &str) {
        let mut shown = String::new();
        while !shown.contains(wanted) {
            shown += &String::from_utf8_lossy(&self.bytes().await);
        }
    }

    /// How it ends.
    pub async fn closed(&mut self) -> Value {
        let told = self.text().await;
        assert_eq!(told["t"], "closed", "{told}");
        told
    }

    /// How it ends, and what was said over the line until then.
    pub async fn until_closed(&mut self, line: &mut Line) -> (Value, String) {
        let (mut records, mut shown) = (Records::default(), Vec::new());
        loop {
            match self.next().await {
                Message::Binary(bytes) => records.push(&bytes),
                Message::Text(text) => {
                    return (
                        serde_json::from_str(&text).unwrap(),
                        String::from_utf8_lossy(&shown).into_owned(),
                    );
                }
                _ => {}
            }
            while let Some((_, body)) = records.whole().unwrap() {
                shown.extend(line.hears.open(&body).unwrap());
            }
        }
    }
}
