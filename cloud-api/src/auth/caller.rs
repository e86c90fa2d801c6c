//! From the headers of a request to a [`Caller`].

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, Method, header, request::Parts},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

use super::{Caller, sessions, tokens};
use crate::{
    app::App,
    error::{Problem, Result},
};

/// Carries the peer's IP address from the listener to whoever needs it. The outermost layer sets or removes it, so
/// what a client sends under this name is never seen.
pub const PEER_HEADER: &str = "x-copal-peer";

/// The header that every write under the session cookie must carry: a foreign page cannot set it.
pub const CSRF_HEADER: &str = "x-copal-csrf";

/// In which a caller may say why, in UTF-8; it goes to the audit log.
pub const WHY_HEADER: &str = "x-copal-why";

/// The most characters of it.
const MAX_WHY: usize = 500;

/// What the caller says of why.
fn why(headers: &HeaderMap) -> Result<String> {
    let Some(value) = headers.get(WHY_HEADER) else { return Ok(String::new()) };
    let text = std::str::from_utf8(value.as_bytes()).ok().map(str::trim);
    text.filter(|t| t.chars().count() <= MAX_WHY && !t.chars().any(char::is_control))
        .map(str::to_owned)
        .ok_or_else(|| {
            Problem::bad_request(
                "why_invalid",
                format!("X-Copal-Why is at most {MAX_WHY} characters of UTF-8, without control characters."),
            )
        })
}

/// Where a request came from, as [`PEER_HEADER`] says.
#[must_use]
pub fn source(headers: &HeaderMap) -> String {
    headers.get(PEER_HEADER).and_then(|v| v.to_str().ok()).unwrap_or("unknown").to_owned()
}

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self> {
        if parts.headers.contains_key(header::AUTHORIZATION) {
            let token = bearer(&parts.headers).ok_or_else(|| {
                Problem::unauthorized(
                    "credentials_invalid",
                    "The Authorization header is not `Bearer copal_…`. Make a token with `copal token create`.",
                )
            })?;
            let caller = tokens::caller(app, token, source(&parts.headers)).await?;
            return Ok(Self { why: why(&parts.headers)?, ..caller });
        }
        let Some(session) = sessions::cookie(app, &parts.headers) else {
            return Err(Problem::unauthorized(
                "credentials_missing",
                "This needs credentials: `Authorization: Bearer copal_…`, or a signed-in session.",
            ));
        };
        let caller = sessions::caller(app, session, source(&parts.headers)).await?;
        let caller = Self { why: why(&parts.headers)?, ..caller };
        if !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) {
            same_site(&parts.headers, &app.config.url)?;
        }
        Ok(caller)
    }
}

/// Credentials as git and registry clients send them: HTTP Basic with a token as password, whatever the user name;
/// a Bearer token is taken as well.
///
/// # Errors
/// 401 where there are none or they are not valid.
pub async fn basic(app: &App, headers: &HeaderMap) -> Result<Caller> {
    tokens::caller(app, &shown(headers)?, source(headers)).await
}

/// The token that a git or registry client shows.
///
/// # Errors
/// 401 where there is none.
pub fn shown(headers: &HeaderMap) -> Result<String> {
    let missing = || {
        Problem::unauthorized(
            "credentials_missing",
            "This needs credentials: any user name, and an API token (`copal token create`) as the password.",
        )
    };
    let value = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).ok_or_else(missing)?;
    if let Some(token) = bearer(headers) {
        return Ok(token.to_owned());
    }
    let (scheme, encoded) = value.split_once(' ').ok_or_else(missing)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(missing());
    }
    let decoded = BASE64.decode(encoded.trim()).ok().and_then(|b| String::from_utf8(b).ok());
    let decoded = decoded.ok_or_else(missing)?;
    let (_, password) = decoded.split_once(':').ok_or_else(missing)?;
    Ok(password.to_owned())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn csrf(why: &str) -> Problem {
    Problem::forbidden(
        "csrf",
        format!(
            "A write with the session cookie was refused: {why}. Use an API token outside the dashboard."
        ),
    )
}

/// Refuses a write that a foreign page could have caused. A browser sends the session cookie by itself; the header
/// only a page of this origin can add.
///
/// # Errors
/// 403 `csrf`.
pub fn same_site(headers: &HeaderMap, url: &str) -> Result<()> {
    if headers.get(CSRF_HEADER).is_none_or(|v| v != "1") {
        return Err(csrf("the header X-Copal-CSRF: 1 is missing"));
    }
    own_page(headers, url)
}

/// The part of [`same_site`] that holds for plain forms too, which cannot add a header: `Origin` and
/// `Sec-Fetch-Site` no page can forge.
///
/// # Errors
/// 403 `csrf`.
pub fn own_page(headers: &HeaderMap, url: &str) -> Result<()> {
    let text = |name: &str| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    if let Some(site) = text("sec-fetch-site")
        && !matches!(site, "same-origin" | "none")
    {
        return Err(csrf("it comes from another site"));
    }
    if let Some(origin) = text("origin") {
        // The page may have been opened under another name of this server (an address instead of a name).
        let authority = origin.split_once("://").map_or(origin, |(_, a)| a);
        if origin != url && text("host") != Some(authority) {
            return Err(csrf("its Origin is not this server"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn a_foreign_page_cannot_write() {
        let url = "https://copal.example";
        let ok = |pairs: &[_]| same_site(&headers(pairs), url).is_ok();
        assert!(ok(&[("x-copal-csrf", "1")]));
        assert!(ok(&[("x-copal-csrf", "1"), ("origin", url), ("sec-fetch-site", "same-origin")]));
        assert!(ok(&[("x-copal-csrf", "1"), ("origin", "https://10.0.0.1:8443"), ("host", "10.0.0.1:8443")]));
        assert!(!ok(&[]));
        assert!(!ok(&[("origin", url)]));
        assert!(!ok(&[("x-copal-csrf", "1"), ("origin", "https://evil.example"), ("host", "copal.example")]));
        assert!(!ok(&[("x-copal-csrf", "1"), ("origin", "null"), ("host", "copal.example")]));
        assert!(!ok(&[("x-copal-csrf", "1"), ("sec-fetch-site", "cross-site")]));
        assert!(!ok(&[("x-copal-csrf", "1"), ("sec-fetch-site", "same-site")]));
    }
}
