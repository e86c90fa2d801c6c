//! `POST /device/v1/enrol`: a device made its keys and asks to join.

use std::time::Instant;

use axum::{Json, extract::State, http::HeaderMap};
use copal_protocol::{
    device_api::{DeviceState, EnrolRequest, EnrolResponse},
    enrol,
    ids::{AppId, DeviceId, FleetId},
    seal,
};

use super::{peer, rows};
use crate::{
    app::{self, App},
    assignments,
    bus::Event,
    error::{Problem, Result},
};

/// Where the secret of an enrolment token is encrypted for.
#[must_use]
pub fn token_place(id: &str) -> String {
    format!("enrolment_tokens/{id}")
}

/// Enrols a device. With the same keys again it is the same device, whatever became of the token.
pub(super) async fn enrol(
    State(app): State<App>,
    headers: HeaderMap,
    body: super::Strict<EnrolRequest>,
) -> Result<Json<EnrolResponse>> {
    let source = peer(&headers);
    app.devices.limits.enrol(&source, Instant::now())?;
    let answer = admit(&app, body.0).await;
    if answer.as_ref().is_err_and(|p| p.status().is_client_error()) {
        app.devices.limits.failed(&source, Instant::now());
    }
    let (device, state) = answer?;
    Ok(Json(EnrolResponse { device_id: device, state }))
}

async fn admit(app: &App, request: EnrolRequest) -> Result<(DeviceId, DeviceState)> {
    check_shape(&request)?;
    let fleet = request.fleet_id;
    let token = token(app, &request).await?;
    let mut signature = [0; 64];
    let message = enrol::enrol_message(fleet, &request.token_id, &request.public_key, &request.seal_key);
    if hex::decode_to_slice(&request.signature, &mut signature).is_err()
        || !request.public_key.verifies(&message, &signature)
    {
        return Err(Problem::forbidden(
            "enrolment_signature_invalid",
            "The enrolment is not signed by the key it shows.",
        ));
    }

    let mut tx = app.db.write().await?;
    let known: Option<(String, String, String)> = sqlx::query_as(
        "SELECT device_id, state, seal_key FROM devices WHERE fleet_id = $1 AND public_key = $2",
    )
    .bind(fleet.to_string())
    .bind(request.public_key.to_string())
    .fetch_optional(&mut *tx)
    .await?;
    if let Some((id, state, seal_key)) = known {
        if seal_key != request.seal_key {
            return Err(Problem::conflict(
                "device_key_known",
                "This device key is enrolled with another seal key. Give the device a new identity to enrol it anew.",
            ));
        }
        return Ok((id.parse().map_err(Problem::internal)?, rows::state_from(&state)?));
    }
    // Read again within the write: two devices may come with the same single-use token at once.
    let now = app::now();
    if token.expires_at.unsigned_abs() <= now {
        return Err(Problem::forbidden(
            "enrolment_token_expired",
            "The enrolment token has expired. Make a new one with `copal device config`.",
        ));
    }
    let spent = sqlx::query(
        "UPDATE enrolment_tokens SET uses_left = uses_left - 1
         WHERE id = $1 AND uses_left > 0 AND revoked_at IS NULL AND fleet_id = $2",
    )
    .bind(&request.token_id)
    .bind(fleet.to_string())
    .execute(&mut *tx)
    .await?;
    if spent.rows_affected() != 1 {
        return Err(Problem::forbidden(
            "enrolment_token_used",
            "The enrolment token was used by another device. Make one for each device with `copal device config`.",
        ));
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(Problem::internal)?;
    let device = DeviceId::from_bytes(id);
    sqlx::query(
        "INSERT INTO devices (device_id, fleet_id, name, state, public_key, seal_key, introduction_id, introduction_mac,
            arch, device_type, enrolment_token, created_at)
         VALUES ($1, $2, $3, 'accepted', $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(device.to_string())
    .bind(fleet.to_string())
    .bind(name(&request.name, device))
    .bind(request.public_key.to_string())
    .bind(&request.seal_key)
    .bind(&request.introduction_id)
    .bind(request.introduction_mac.map(|m| m.to_string()))
    .bind(&request.arch)
    .bind(&request.device_type)
    .bind(&request.token_id)
    .bind(now.cast_signed())
    .execute(&mut *tx)
    .await?;
    rows::add_events(
        &mut tx,
        device,
        now,
        &[rows::NewEvent::new("enrolled", "enrolled", format!("Enrolled with token {}.", request.token_id))],
    )
    .await?;
    tx.commit().await?;
    app.devices.add(&rows::Known {
        device_id: device,
        fleet_id: fleet,
        state: DeviceState::Accepted,
        last_seen: None,
        expected: None,
        mark: None,
    });
    assignments::refresh_device(app, device).await?;
    app.bus.publish(Event::Device { fleet_id: fleet.to_string(), id: device.to_string() });
    Ok((device, DeviceState::Accepted))
}

#[derive(sqlx::FromRow)]
struct Token {
    fleet_id: String,
    secret: Vec<u8>,
    expires_at: i64,
    revoked_at: Option<i64>,
}

/// The token whose secret the device knows. What is wrong with an unknown one is not told apart.
async fn token(app: &App, request: &EnrolRequest) -> Result<Token> {
    let invalid = || {
        Problem::forbidden(
            "enrolment_token_invalid",
            "The enrolment token is not valid for this fleet. Make a new one with `copal device config`.",
        )
    };
    let token: Token =
        sqlx::query_as("SELECT fleet_id, secret, expires_at, revoked_at FROM enrolment_tokens WHERE id = $1")
            .bind(&request.token_id)
            .fetch_optional(app.db.read())
            .await?
            .ok_or_else(invalid)?;
    let secret = app.keys.at_rest.open(&token_place(&request.token_id), &token.secret)?;
    let secret = String::from_utf8(secret).map_err(Problem::internal)?;
    let fleet: FleetId = token.fleet_id.parse().map_err(Problem::internal)?;
    let mac = enrol::token_mac(
        &secret,
        request.fleet_id,
        &request.token_id,
        &request.public_key,
        &request.seal_key,
    );
    if fleet != request.fleet_id || !enrol::same_mac(&mac, &request.token_mac) || token.revoked_at.is_some() {
        return Err(invalid());
    }
    Ok(token)
}

fn check_shape(request: &EnrolRequest) -> Result<()> {
    let word = |s: &str, max: usize| {
        !s.is_empty()
            && s.len() <= max
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-/".contains(&b))
    };
    let bad = |what: &str| {
        Err(Problem::invalid(
            "enrolment_malformed",
            format!("The enrolment's {what} is missing, too long or has characters it may not have."),
        ))
    };
    if !word(&request.token_id, 128) {
        return bad("token_id");
    }
    if !word(&request.arch, 32) {
        return bad("arch");
    }
    if !word(&request.device_type, 64) {
        return bad("device_type");
    }
    if request.introduction_id.as_ref().is_some_and(|id| !word(id, 128)) {
        return bad("introduction_id");
    }
    // Tried, so that a key nothing can be sealed to is refused here and not when the first secret is set.
    let probe = seal::SealContext {
        fleet: request.fleet_id,
        device: DeviceId::from_bytes([0; 16]),
        app: AppId::from_bytes([0; 16]),
        service: &"probe".parse().map_err(Problem::internal)?,
        variable: "probe",
    };
    if seal::seal(&request.seal_key, &probe, b"probe").is_err() {
        return bad("seal_key");
    }
    Ok(())
}

/// A name people can read: no control characters, nothing that turns the text around, at most 63 characters.
pub(crate) fn clean_name(name: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    name.chars().filter(|c| !hidden(*c)).take(63).collect::<String>().trim().to_owned()
}

fn name(asked: &str, device: DeviceId) -> String {
    let name = clean_name(asked);
    if name.is_empty() { format!("device-{}", &device.to_string()[..8]) } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_hide_or_turn_text_around() {
        assert_eq!(clean_name("  pi-\u{1b}[31m\u{202e}kitchen\r\n "), "pi-[31mkitchen");
        assert_eq!(clean_name(&"x".repeat(99)).len(), 63);
        assert_eq!(name("\u{200b}", DeviceId::from_bytes([7; 16])), "device-07070707");
    }
}
