//! For tests of every room: a cloud in a temporary folder, and requests against its router.

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

use crate::{
    app::{self, App},
    auth::{Role, Scope, tokens, users},
    config::Config,
    serve,
};

/// A cloud; its folder goes when it does.
pub(crate) struct Cloud {
    pub(crate) app: App,
    pub(crate) router: Router,
    _dir: tempfile::TempDir,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    /// The problem's code.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// The password of every user here.
pub(crate) const PASSWORD: &str = "correct horse battery";

impl Cloud {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let app = app::open(Config::local(dir.path().join("data"))).await.unwrap();
        let router = serve::router(app.clone());
        Self { app, router, _dir: dir }
    }

    /// A user of this role; gives a token of full scope.
    pub(crate) async fn user(&self, email: &str, role: Role) -> String {
        self.token(email, role, Scope::Full, None).await
    }

    /// A user and a token of this scope.
    pub(crate) async fn token(
        &self,
        email: &str,
        role: Role,
        scope: Scope,
        fleet: Option<copal_protocol::ids::FleetId>,
    ) -> String {
        let (email, hash) = users::prepare(&self.app, email, PASSWORD.to_owned()).await.unwrap();
        let mut tx = self.app.db.write().await.unwrap();
        let user_id = users::upsert(&mut tx, &email, &hash, role).await.unwrap();
        let new = tokens::NewToken { user_id: &user_id, name: "test", scope, fleet, expires_at: None };
        let (_, token) = tokens::create(&mut tx, &new).await.unwrap();
        tx.commit().await.unwrap();
        token
    }

    /// One request; `token` is a Bearer token, `body` JSON.
    pub(crate) async fn call(&self, method: &str, path: &str, token: &str, body: Option<Value>) -> Answer {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = match body {
            Some(json) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(json.to_string())
            }
            None => Body::empty(),
        };
        self.send(request.body(body).unwrap()).await
    }

    /// Any request.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes().to_vec();
        Answer { status: parts.status, headers: parts.headers, bytes }
    }
}
