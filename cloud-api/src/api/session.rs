//! Signing in and out, for browsers. Programs use tokens.

use std::time::Instant;

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{AppendHeaders, IntoResponse},
};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Json,
    me::{self, Me},
};
use crate::{
    app::App,
    audit,
    auth::{Caller, Role, Scope, limited, members, sessions, source, users},
    error::{Problem, Result},
};

/// Routes of sessions.
pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::default().routes(routes!(sign_in, sign_out))
}

/// Who signs in.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignIn {
    /// The address.
    pub email: String,
    /// The password.
    pub password: String,
}

/// Signs in: sets the cookie `copal_session` (`__Host-copal_session` under TLS). Writes under the cookie also need the
/// header `X-Copal-CSRF: 1`.
#[utoipa::path(post, path = "/session", tag = "people", security(()), request_body = SignIn,
    responses((status = 200, body = Me), (status = 401, description = "`sign_in_failed`"),
        (status = 429, description = "`too_many_attempts`")))]
pub(crate) async fn sign_in(
    State(app): State<App>,
    headers: HeaderMap,
    Json(asked): Json<SignIn>,
) -> Result<impl IntoResponse> {
    let source = source(&headers);
    let email = users::normal_email(&asked.email).unwrap_or_default();
    limited(&app, &email, &source)?;
    let user = users::by_email(&app, &email).await?;
    let stored = user.as_ref().map(|u| u.password_hash.clone());
    let right = app.auth.hashing.verify(stored, asked.password).await?;
    let mut tx = app.db.write().await?;
    // Hashing took its time: a person shut out meanwhile, or with another password by now, begins nothing with the old one.
    let right = right
        && match &user {
            Some(user) => users::is_still(&mut tx, user).await?,
            None => false,
        };
    let object = format!("user:{email}");
    let Some(user) = user.filter(|_| right) else {
        app.auth.limits.failed(&email, &source, Instant::now());
        audit::record_as(&mut tx, &email, &source, "session.refused", &object, serde_json::Value::Null)
            .await?;
        tx.commit().await?;
        return Err(Problem::unauthorized("sign_in_failed", "The address or the password is wrong."));
    };
    app.auth.limits.succeeded(&email, &source);
    // Always a new session: one that was planted in this browser beforehand stays worthless, and ends here.
    if let Some(old) = sessions::cookie(&app, &headers) {
        sessions::end(&mut tx, old).await?;
    }
    let session = sessions::begin(&mut tx, &user.id).await?;
    audit::record_as(&mut tx, &email, &source, "session.begin", &object, serde_json::Value::Null).await?;
    tx.commit().await?;
    let role = user.role.parse::<Role>()?;
    let fleets = me::named(&app, &*members::of_user(app.db.read(), &user.id, role).await?).await?;
    let me = Me { email, role, fleets, scope: Scope::Full, token: None, fleet: None };
    let cookie = sessions::set_cookie(&app, &session)?;
    Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), Json(me)))
}

/// Signs out: ends the session and takes the cookie away.
#[utoipa::path(delete, path = "/session", tag = "people", responses((status = 204)))]
pub(crate) async fn sign_out(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<impl IntoResponse> {
    if let Some(session) = sessions::cookie(&app, &headers) {
        let mut tx = app.db.write().await?;
        sessions::end(&mut tx, session).await?;
        let object = format!("user:{}", caller.email);
        audit::note(&mut tx, &caller, "session.end", &object, serde_json::Value::Null).await?;
        tx.commit().await?;
    }
    let cookie = sessions::set_cookie(&app, "")?;
    Ok((StatusCode::NO_CONTENT, AppendHeaders([(header::SET_COOKIE, cookie)])))
}
