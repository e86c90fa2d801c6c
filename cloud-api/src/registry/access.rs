//! Who asks the registry, and what they may.
//!
//! People and CI show an API token, mostly by Docker's token flow: `/registry/token` trades it (HTTP Basic) for one
//! that lives five minutes and opens what was asked *and* is allowed. Devices show their session token directly.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use sha2::{Digest as _, Sha256};

use super::{OciError, names};
use crate::{
    app::App,
    auth::{self, Act, Caller},
    devices::{self, DeviceSession},
    store::fleets,
};

/// How long a granted token lives.
const LIFETIME: Duration = Duration::from_secs(300);

/// The most granted tokens alive at a time; beyond, the oldest go.
const MAX_GRANTS: usize = 10_000;

/// The most scopes one request may ask for.
const MAX_SCOPES: usize = 32;

const PREFIX: &str = "coreg_";

/// What a request wants to do to a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Action {
    Pull,
    Push,
    Delete,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }

    fn parse(text: &str) -> Vec<Self> {
        match text {
            "pull" => vec![Self::Pull],
            "push" => vec![Self::Push],
            "delete" => vec![Self::Delete],
            "*" => vec![Self::Pull, Self::Push, Self::Delete],
            _ => Vec::new(),
        }
    }

    fn act(self) -> Act {
        match self {
            Self::Pull => Act::Read,
            Self::Push => Act::Push,
            Self::Delete => Act::Manage,
        }
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) enum Access {
    /// A person or CI.
    Person(Caller),
    /// A device: pulls, and only what releases of its fleet name.
    Device(DeviceSession),
}

/// What a granted token opens.
#[derive(Debug, Clone)]
struct Grant {
    /// The hash of the API token it was traded for: a grant is worth no more than that is when it is used.
    key: String,
    access: BTreeMap<String, BTreeSet<Action>>,
    until: Instant,
}

/// Granted tokens, by their hash.
#[derive(Debug, Default)]
pub(super) struct Grants(Mutex<HashMap<[u8; 32], Grant>>);

impl Grants {
    fn put(&self, token: &str, grant: Grant) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        map.retain(|_, g| g.until > now);
        if map.len() >= MAX_GRANTS
            && let Some(oldest) = map.iter().min_by_key(|(_, g)| g.until).map(|(k, _)| *k)
        {
            map.remove(&oldest);
        }
        map.insert(Sha256::digest(token.as_bytes()).into(), grant);
    }

    fn get(&self, token: &str) -> Option<Grant> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.get(&key).filter(|g| g.until > Instant::now()).cloned()
    }
}

enum Identity {
    Direct(Access),
    Granted(Caller, BTreeMap<String, BTreeSet<Action>>),
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn unauthorized(message: &str) -> OciError {
    OciError::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
}

/// Whether the credentials are valid at all; what they open is another question.
pub(super) async fn identify(app: &App, headers: &HeaderMap) -> Result<(), OciError> {
    identity(app, headers).await.map(|_| ())
}

async fn identity(app: &App, headers: &HeaderMap) -> Result<Identity, OciError> {
    if !headers.contains_key(header::AUTHORIZATION) {
        return Err(unauthorized("this needs credentials: an API token as the password"));
    }
    match bearer(headers) {
        Some(token) if token.starts_with(PREFIX) => {
            let grant = app.registry.grants.get(token);
            let grant =
                grant.ok_or_else(|| unauthorized("the registry token has expired; ask for a new one"))?;
            let caller = auth::tokens::by_hash(app, &grant.key, auth::source(headers)).await?;
            Ok(Identity::Granted(caller, grant.access))
        }
        Some(token) if !token.starts_with("copal_") => {
            Ok(Identity::Direct(Access::Device(devices::session(app, headers).await?)))
        }
        _ => Ok(Identity::Direct(Access::Person(auth::basic(app, headers).await?))),
    }
}

/// Lets a request through to a repository, or not. Someone without a right learns nothing about what exists.
pub(super) async fn allow(
    app: &App,
    headers: &HeaderMap,
    repo: &str,
    action: Action,
) -> Result<Access, OciError> {
    let denied = || {
        unauthorized(&format!(
            "these credentials do not open {} on {repo}; the first part of a repository's name is its fleet",
            action.as_str()
        ))
    };
    match identity(app, headers).await? {
        Identity::Granted(caller, access) => {
            let asked = access.get(repo).is_some_and(|actions| actions.contains(&action));
            if asked && may(app, &caller, repo, action).await? {
                Ok(Access::Person(caller))
            } else {
                Err(denied())
            }
        }
        Identity::Direct(Access::Person(caller)) => {
            if may(app, &caller, repo, action).await? {
                Ok(Access::Person(caller))
            } else {
                Err(denied())
            }
        }
        Identity::Direct(Access::Device(session)) => {
            if action == Action::Pull {
                Ok(Access::Device(session))
            } else {
                Err(OciError::new(StatusCode::FORBIDDEN, "DENIED", "a device only pulls"))
            }
        }
    }
}

/// Whether a person may do this to a repository of the fleet that its name begins with.
pub(super) async fn may(app: &App, caller: &Caller, repo: &str, action: Action) -> Result<bool, OciError> {
    let Some((slug, _)) = repo.split_once('/') else { return Ok(false) };
    let fleet = match fleets::by_slug(app, slug).await {
        Ok(fleet) => fleet,
        Err(problem) if problem.status() == StatusCode::NOT_FOUND => return Ok(false),
        Err(problem) => return Err(problem.into()),
    };
    Ok(caller.may(action.act(), Some(&fleet)).is_ok())
}

/// What goes into `WWW-Authenticate`.
pub(super) fn challenge(app: &App, headers: &HeaderMap, wanted: Option<(&str, Action)>) -> String {
    // The name the client used reaches this server; the configured URL may not, from where it stands.
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).filter(|h| is_host(h));
    let scheme = if app.config.url.starts_with("https:") { "https" } else { "http" };
    let base = host.map_or_else(|| app.config.url.clone(), |host| format!("{scheme}://{host}"));
    let mut text = format!(r#"Bearer realm="{base}/registry/token",service="copal""#);
    if let Some((repo, action)) = wanted {
        let actions = if action == Action::Push { "pull,push" } else { action.as_str() };
        text += &format!(r#",scope="repository:{repo}:{actions}""#);
    }
    text
}

fn is_host(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b))
}

/// `GET /registry/token?service=copal&scope=repository:NAME:pull,push…`, with HTTP Basic.
pub(super) async fn token(State(app): State<App>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    match grant(&app, query.as_deref().unwrap_or(""), &headers).await {
        Ok(response) => response,
        Err(error) => {
            let mut response = error.into_response();
            if response.status() == StatusCode::UNAUTHORIZED {
                response
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(r#"Basic realm="Copal""#));
            }
            response
        }
    }
}

async fn grant(app: &App, query: &str, headers: &HeaderMap) -> Result<Response, OciError> {
    let caller = auth::basic(app, headers).await?;
    let key = auth::hash_secret(&auth::shown(headers)?);
    let scopes: Vec<String> = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("scope="))
        .flat_map(|value| names::percent_decode(value).split(' ').map(str::to_owned).collect::<Vec<_>>())
        .take(MAX_SCOPES)
        .collect();
    let mut access: BTreeMap<String, BTreeSet<Action>> = BTreeMap::new();
    for scope in &scopes {
        let mut parts = scope.splitn(2, ':');
        let (Some("repository"), Some(rest)) = (parts.next(), parts.next()) else { continue };
        let Some((repo, actions)) = rest.rsplit_once(':') else { continue };
        if !names::is_repo(repo) {
            continue;
        }
        for action in actions.split(',').flat_map(Action::parse).collect::<BTreeSet<_>>() {
            if may(app, &caller, repo, action).await? {
                access.entry(repo.to_owned()).or_default().insert(action);
            }
        }
    }
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(OciError::internal)?;
    let token = format!("{PREFIX}{}", hex::encode(secret));
    app.registry.grants.put(&token, Grant { key, access, until: Instant::now() + LIFETIME });
    let issued = time::OffsetDateTime::now_utc()
        .format(&time::format_description::well_known::Rfc3339)
        .map_err(OciError::internal)?;
    let body = serde_json::json!({
        "token": token, "access_token": token, "expires_in": LIFETIME.as_secs(), "issued_at": issued,
    });
    let mut response = Json(body).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
