//! For tests of every room that is about devices: a fleet with its owner's keys, and devices as their agents would be.

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use copal_protocol::{
    device_api::{EnrolRequest, EnrolResponse, LoginResponse},
    documents::{Assignment, LockState, Report, Root, SPEC},
    enrol,
    envelope::Envelope,
    ids::{DeviceId, Sha256Hex},
    seal::SealKey,
    testing::{OwnerKeys, fixed_key, set_role, sign},
    verify::{self, AssignmentMark, DeviceIdentity, Verified},
};
use serde_json::{Value, json};

use crate::{
    app,
    auth::Role,
    releases,
    store::fleets,
    testing::{Answer, Cloud},
};

/// A fleet whose owner is at hand.
pub(crate) struct Fleet {
    pub(crate) cloud: Cloud,
    pub(crate) keys: OwnerKeys,
    pub(crate) token: String,
    pub(crate) root: Root,
    pub(crate) roots: u64,
}

/// A device as its agent would be.
pub(crate) struct Device {
    pub(crate) key: copal_protocol::keys::SigningKey,
    pub(crate) seal: SealKey,
    pub(crate) id: DeviceId,
    pub(crate) link: Option<String>,
    pub(crate) session: String,
    pub(crate) counter: u64,
    /// Whose key its reports are signed with, where not its own.
    pub(crate) forger: Option<copal_protocol::keys::SigningKey>,
}

impl Fleet {
    /// A fleet `porch` of amd64 devices with Root 1, in builder mode.
    pub(crate) async fn new() -> Self {
        let cloud = Cloud::new().await;
        let token = cloud.user("anna@example.org", Role::Owner).await;
        let body = json!({"slug": "porch", "device_type": "generic", "arch": "amd64"});
        cloud.call("POST", "/api/v1/fleets", &token, Some(body)).await;
        let row = fleets::by_slug(&cloud.app, "porch").await.unwrap();
        let mut keys = OwnerKeys::fixed();
        keys.fleet_id = row.fleet_id;
        keys.app_id = row.app_id;
        let mut root = keys.root();
        root.version = 0;
        root.issued_at = app::now();
        root.expires = app::now() + 1_000_000;
        set_role(&mut root, copal_protocol::documents::Role::Builder, &[&cloud.app.keys.builder], 1);
        set_role(&mut root, copal_protocol::documents::Role::Assign, &[&cloud.app.keys.assign], 1);
        let mut fleet = Self { cloud, keys, token, root, roots: 0 };
        fleet.new_root(|_| {}).await;
        fleet
    }

    /// Uploads the next Root, changed so.
    pub(crate) async fn new_root(&mut self, change: impl FnOnce(&mut Root)) {
        change(&mut self.root);
        self.roots += 1;
        self.root.version = self.roots;
        let envelope = sign(&self.root, &[&self.keys.root]);
        let body = serde_json::from_slice(&envelope.to_bytes()).unwrap();
        let answer = self.call("PUT", "/api/v1/fleets/porch/root", Some(body)).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }

    pub(crate) fn trusted(&self) -> Verified<Root> {
        self.keys.trusted(&self.root)
    }

    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        self.cloud.call(method, path, &self.token, body).await
    }

    pub(crate) async fn ok(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let answer = self.call(method, path, body).await;
        assert!(answer.status.is_success(), "{method} {path}: {}", String::from_utf8_lossy(&answer.bytes));
        if answer.bytes.is_empty() { Value::Null } else { answer.json() }
    }

    /// A release of one service, published.
    pub(crate) async fn release(&self, draft: bool) -> String {
        let id = releases::prepare(&self.cloud.app, self.new_release(draft)).await.unwrap();
        releases::publish(&self.cloud.app, &id).await.unwrap();
        id
    }

    pub(crate) fn new_release(&self, draft: bool) -> releases::NewRelease {
        let made = self.keys.release(1);
        let record = copal_protocol::documents::BuildRecord {
            spec: SPEC,
            fleet_id: self.keys.fleet_id,
            app_id: self.keys.app_id,
            commit: "c0ffee".to_owned(),
            source: "c0ffee".to_owned(),
            platform: "linux/amd64".to_owned(),
            builder: "test".to_owned(),
            started_at: 1,
            finished_at: 2,
            images: std::collections::BTreeMap::new(),
            external: std::collections::BTreeMap::new(),
            ext: None,
        };
        releases::NewRelease {
            fleet: self.keys.fleet_id,
            source: "c0ffee".to_owned(),
            branch: "main".to_owned(),
            note: String::new(),
            draft,
            build_id: None,
            version: None,
            services: made.services,
            volumes: made.volumes,
            networks: made.networks,
            build_record: sign(&record, &[&self.cloud.app.keys.builder]),
            compat: made.compat,
        }
    }

    /// An enrolment token.
    pub(crate) async fn enrolment_token(&self, body: Value) -> String {
        let made = self.ok("POST", "/api/v1/fleets/porch/enrolment-tokens", Some(body)).await;
        made["token"].as_str().unwrap().to_owned()
    }

    pub(crate) fn enrolment(&self, token: &str, n: u8, seal: &SealKey) -> EnrolRequest {
        let key = fixed_key(n);
        let (id, secret) = enrol::split_token(token).unwrap();
        let (fleet, public, seal_key) = (self.keys.fleet_id, key.public(), seal.public());
        let message = enrol::enrol_message(fleet, id, &public, &seal_key);
        EnrolRequest {
            fleet_id: fleet,
            token_id: id.to_owned(),
            token_mac: enrol::token_mac(secret, fleet, id, &public, &seal_key),
            public_key: public,
            seal_key,
            introduction_mac: None,
            introduction_id: None,
            name: format!("pi-{n}"),
            arch: "amd64".to_owned(),
            device_type: "generic".to_owned(),
            signature: hex::encode(key.sign(&message)),
        }
    }

    pub(crate) async fn post<T: serde::Serialize>(&self, path: &str, token: &str, body: &T) -> Answer {
        self.cloud.call("POST", path, token, Some(serde_json::to_value(body).unwrap())).await
    }

    /// A device with this key, enrolled and logged in.
    pub(crate) async fn device(&self, n: u8) -> Device {
        let token = self.enrolment_token(json!({})).await;
        let seal = SealKey::from_bytes(&[n; 32]);
        let answer = self.post("/device/v1/enrol", "", &self.enrolment(&token, n, &seal)).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let enrolled: EnrolResponse = serde_json::from_slice(&answer.bytes).unwrap();
        let mut device = Device {
            key: fixed_key(n),
            seal,
            id: enrolled.device_id,
            link: None,
            session: String::new(),
            counter: 0,
            forger: None,
        };
        device.login(self).await;
        device
    }

    pub(crate) async fn shown(&self, device: &Device) -> Value {
        self.ok("GET", &format!("/api/v1/devices/{}", device.id), None).await
    }
}

impl Device {
    /// Logs in and keeps the link.
    pub(crate) async fn login(&mut self, fleet: &Fleet) {
        let answer = self.try_login(fleet, self.link.clone()).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let login: LoginResponse = serde_json::from_slice(&answer.bytes).unwrap();
        self.session = login.token;
        self.link = Some(login.refresh_link);
    }

    pub(crate) async fn try_login(&self, fleet: &Fleet, link: Option<String>) -> Answer {
        let challenge = fleet
            .cloud
            .call("POST", "/device/v1/challenge", "", Some(json!({"device_id": self.id})))
            .await
            .json();
        let challenge: Sha256Hex = serde_json::from_value(challenge["challenge"].clone()).unwrap();
        let signature = hex::encode(self.key.sign(&enrol::login_message(self.id, challenge)));
        let mut body = json!({"device_id": self.id, "challenge": challenge, "signature": signature});
        if let Some(link) = link {
            body["refresh_link"] = link.into();
        }
        fleet.cloud.call("POST", "/device/v1/login", "", Some(body)).await
    }

    pub(crate) fn identity(&self, fleet: &Fleet) -> DeviceIdentity {
        DeviceIdentity {
            fleet_id: fleet.keys.fleet_id,
            device_id: self.id,
            key_sha256: self.key.public().id(),
        }
    }

    pub(crate) async fn get(&self, fleet: &Fleet, path: &str, etag: Option<&str>) -> Answer {
        let mut request =
            Request::get(path).header(header::AUTHORIZATION, format!("Bearer {}", self.session));
        if let Some(etag) = etag {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        fleet.cloud.send(request.body(Body::empty()).unwrap()).await
    }

    /// The assignment, verified as a device does.
    pub(crate) async fn assignment(&self, fleet: &Fleet, mark: &AssignmentMark) -> Verified<Assignment> {
        let answer = self.get(fleet, "/device/v1/state", None).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let envelope = Envelope::parse::<Assignment>(&answer.bytes).unwrap();
        assert_eq!(answer.headers[header::ETAG], format!("\"{}\"", envelope.payload_sha256()).as_str());
        verify::assignment(&fleet.trusted(), &self.identity(fleet), mark, &envelope).unwrap()
    }

    /// Reports that it runs what it was given, or why not.
    pub(crate) async fn report(&mut self, fleet: &Fleet, change: impl FnOnce(&mut Report)) -> Answer {
        let envelope = self.signed_report(fleet, change).await;
        self.post(fleet, "/device/v1/report", envelope.to_bytes()).await
    }

    /// A report, signed and not sent.
    pub(crate) async fn signed_report(
        &mut self,
        fleet: &Fleet,
        change: impl FnOnce(&mut Report),
    ) -> Envelope {
        self.counter += 1;
        let assignment = self.assignment(fleet, &AssignmentMark::default()).await;
        let mut report = Report {
            spec: SPEC,
            fleet_id: fleet.keys.fleet_id,
            device_id: self.id,
            boot_id: "b".repeat(32),
            report_counter: self.counter,
            root_version: fleet.root.version,
            root_sha256: Sha256Hex::of(b"root"),
            lock: LockState::Open,
            assign_epoch: assignment.assign_epoch,
            seq_accepted: assignment.seq,
            seq_applied: assignment.seq,
            unfresh: false,
            running: std::collections::BTreeMap::new(),
            committed: assignment.apps.iter().map(|app| (app.app_id, app.sha256)).collect(),
            reason: None,
            progress: None,
            host: None,
            agent: None,
            health: None,
            agent_version: "0.1.0".to_owned(),
            os_version: "Debian".to_owned(),
            arch: "amd64".to_owned(),
            time: 1,
            ext: None,
        };
        change(&mut report);
        sign(&report, &[self.forger.as_ref().unwrap_or(&self.key)])
    }

    pub(crate) async fn post(&self, fleet: &Fleet, path: &str, bytes: Vec<u8>) -> Answer {
        let request = Request::post(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.session))
            .header(header::CONTENT_TYPE, "application/json");
        fleet.cloud.send(request.body(Body::from(bytes)).unwrap()).await
    }
}
