//! Challenge and login. Each login gives a random link that the next must show: whoever copied a device's key does not
//! have the link the device got since, and two holders are seen at the next login of either.

use std::time::Instant;

use axum::{Json, extract::State, http::HeaderMap};
use copal_protocol::{
    device_api::{ChallengeRequest, ChallengeResponse, LoginRequest, LoginResponse},
    enrol,
    ids::Sha256Hex,
};

use super::{Strict, memory, peer, rows};
use crate::{
    app::{self, App},
    bus::Event,
    error::{Problem, Result},
};

/// Gives a challenge, to known and unknown devices alike.
pub(super) async fn challenge(
    State(app): State<App>,
    headers: HeaderMap,
    body: Strict<ChallengeRequest>,
) -> Result<Json<ChallengeResponse>> {
    let now = Instant::now();
    app.devices.limits.attempt(&peer(&headers), now)?;
    let challenge = app.devices.challenges.make(body.0.device_id, now).map_err(Problem::internal)?;
    Ok(Json(ChallengeResponse { challenge }))
}

/// Logs a device in.
pub(super) async fn login(
    State(app): State<App>,
    headers: HeaderMap,
    body: Strict<LoginRequest>,
) -> Result<Json<LoginResponse>> {
    app.devices.limits.attempt(&peer(&headers), Instant::now())?;
    admit(&app, &body.0).await.map(Json)
}

async fn admit(app: &App, request: &LoginRequest) -> Result<LoginResponse> {
    // One answer for an unknown device, a stale challenge and a wrong signature: nothing is learnt from it.
    let refused = || {
        Problem::unauthorized(
            "login_refused",
            "The login is not right: the device is unknown here, the challenge has run out or was used, or the signature is not the device's. Ask for a new challenge and try again.",
        )
    };
    let device = request.device_id;
    let now = Instant::now();
    if !app.devices.challenges.holds(device, request.challenge, now) {
        return Err(refused());
    }
    let row = rows::by_id(app, device).await?.ok_or_else(refused)?;
    let mut signature = [0; 64];
    if hex::decode_to_slice(&request.signature, &mut signature).is_err()
        || !row.key()?.verifies(&enrol::login_message(device, request.challenge), &signature)
        || !app.devices.challenges.spend(request.challenge, now)
    {
        return Err(refused());
    }
    let entry = app.devices.get(device).ok_or_else(refused)?;

    let mut link = [0; 32];
    getrandom::fill(&mut link).map_err(Problem::internal)?;
    let link = hex::encode(link);
    let shown = request.refresh_link.as_deref().map(hash);
    let mut tx = app.db.write().await?;
    let row = rows::by_id_in(&mut tx, device).await?.ok_or_else(refused)?;
    memory::refuse_unless_accepted(row.device_state()?)?;
    let suspected = || {
        Problem::conflict(
            "clone_suspected",
            "Another holder of this device's key logged in. Neither gets anything new until a person decides: `copal device accept`.",
        )
    };
    if row.clone_suspected {
        return Err(suspected());
    }
    if !continues(row.link_hash.as_deref(), row.link_previous_hash.as_deref(), shown.as_deref()) {
        sqlx::query("UPDATE devices SET clone_suspected = TRUE WHERE device_id = $1")
            .bind(device.to_string())
            .execute(&mut *tx)
            .await?;
        let event = rows::NewEvent::new(
            "clone",
            "clone_suspected",
            "A login with the right key showed a link that is neither the newest nor the one before it.",
        );
        rows::add_events(&mut tx, device, app::now(), &[event]).await?;
        tx.commit().await?;
        app.devices.cut(device);
        app.bus.publish(Event::Device { fleet_id: row.fleet_id, id: row.device_id });
        return Err(suspected());
    }
    sqlx::query("UPDATE devices SET link_hash = $2, link_previous_hash = $3 WHERE device_id = $1")
        .bind(device.to_string())
        .bind(hash(&link))
        .bind(&shown)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    // Revoked in between: the session would be refused at its first use; see `Memory::session`.
    let token = app.devices.open(&entry)?;
    super::presence::heard(app, &entry);
    Ok(LoginResponse { token, expires_in: memory::SESSION.as_secs(), refresh_link: link })
}

/// Whether the link shown continues the chain: the newest, or the one before it while the newest was not yet shown (its
/// answer may have been lost in a power cut). Where no link was ever given, or was forgotten on purpose (a person
/// accepted the device, the cloud was restored), anything does.
fn continues(newest: Option<&str>, previous: Option<&str>, shown: Option<&str>) -> bool {
    newest.is_none() || shown == newest || shown == previous
}

fn hash(link: &str) -> String {
    Sha256Hex::of(link.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_link_or_the_one_before_it_continues_the_chain() {
        assert!(continues(None, None, None), "the first login");
        assert!(continues(Some("1"), None, Some("1")));
        assert!(continues(Some("1"), None, None), "the answer to the first login was lost");
        assert!(continues(Some("2"), Some("1"), Some("1")), "the answer was lost");
        assert!(!continues(Some("3"), Some("2"), Some("1")), "an old copy");
        assert!(!continues(Some("2"), Some("1"), None), "a copy from before the first login");
        assert!(continues(None, None, Some("9")), "after a person accepted it");
    }
}
