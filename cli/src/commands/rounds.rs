//! The same asked of every device a filter means: how many are told first, then a line for each.

use std::time::Duration;

use copal_filter::Filter;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    args::How,
    context::Context,
    failure::{Failure, Kind, Result},
    http::{Api, seg},
    output::{short, table, text},
};

/// How long the server holds a request for a round's end.
const HOLD_S: u64 = 20;
/// How long a stored round is watched beyond the last device that moved, before it is left to wait for its devices.
const STORED: Duration = Duration::from_secs(5);
/// What takes something away, or may cut a device off.
const GRAVE: &[&str] = &["purge_data", "reboot", "stop_service", "set_network"];

/// What is asked of each.
pub(super) struct Wish<'a> {
    pub(super) fleet: &'a str,
    pub(super) filter: &'a Filter,
    pub(super) verb: &'static str,
    pub(super) args: Value,
    pub(super) how: &'a How,
}

pub(super) async fn run(ctx: &Context, api: &Api, wish: Wish<'_>) -> Result<()> {
    let fleet = ctx.fleet(api, Some(wish.fleet)).await?;
    let what = format!("{} on devices of fleet {}", wish.verb, fleet.slug);
    let path = format!("/fleets/{}/commands", seg(&fleet.slug));
    let mut body = json!({ "verb": wish.verb, "args": wish.args, "filter": wish.filter.to_string() });
    if let Some(ttl) = wish.how.ttl {
        body["delivery"] = json!("store");
        body["ttl_s"] = json!(ttl);
    }
    let count = meant(ctx, api, &wish, &what, &path, &body).await?;
    body["expect_count"] = json!(count);
    let mut round = api.call(&what, Method::POST, &path, Some(&body)).await?;
    let id = text(&round, "id");
    let path = format!("{path}/{}", seg(&id));
    if !wish.how.no_wait {
        round = wait(ctx, api, &wish, &what, &path, round).await?;
    }
    let devices = api.all(&what, &format!("{path}/devices"), "").await?;
    let mut whole = round.clone();
    whole["devices"] = json!(devices);
    ctx.out.result(&whole, || shown(wish.verb, &round, &devices));
    judge(&wish, &what, &round)
}

/// How many devices the filter means. What takes something away is asked about first.
async fn meant(
    ctx: &Context,
    api: &Api,
    wish: &Wish<'_>,
    what: &str,
    path: &str,
    body: &Value,
) -> Result<u64> {
    let mut ask = body.clone();
    ask["dry_run"] = json!(true);
    let seen = api.call(what, Method::POST, path, Some(&ask)).await?;
    let count = seen["total"].as_u64().unwrap_or(0);
    if count == 0 {
        let why = format!("no device of fleet {} is so: {}", wish.fleet, wish.filter);
        return Err(Failure::not_found(what, why).next(format!("copal device list {}", wish.fleet)));
    }
    match wish.how.expect {
        Some(expected) if expected != count => {
            return Err(Failure::new(
                Kind::Refused,
                "count_differs",
                what,
                format!("the filter means {count} devices, not {expected}; nothing was asked"),
            )
            .next(format!("copal device list {} --filter '{}'", wish.fleet, wish.filter)));
        }
        None if GRAVE.contains(&wish.verb) => {
            let names = seen["sample"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let names: Vec<&str> = names.take(5).collect();
            let more = if count > names.len() as u64 { ", …" } else { "" };
            ctx.confirm(&format!("{} on {count} device(s): {}{more}. Go on?", wish.verb, names.join(", ")))?;
        }
        _ => {}
    }
    Ok(count)
}

/// Watches a round until it ended, or nothing but devices that are away is left of it.
async fn wait(
    ctx: &Context,
    api: &Api,
    wish: &Wish<'_>,
    what: &str,
    path: &str,
    made: Value,
) -> Result<Value> {
    let (began, limit) = (Instant::now(), Duration::from_secs(wish.how.timeout));
    let (mut round, mut moved) = (made, Instant::now());
    while round["ended"] != true {
        if wish.how.ttl.is_some() && moved.elapsed() >= STORED && only_queued(&round) {
            ctx.out.remark("the rest wait for their devices");
            return Ok(round);
        }
        let passed = began.elapsed();
        if passed >= limit {
            return Err(Failure::new(
                Kind::Timeout,
                "not_ended",
                what,
                format!("after {} s {}; the round goes on", wish.how.timeout, states(&round)),
            )
            .next(format!("GET /api/v1{path}/devices tells where each stands")));
        }
        let hold = if wish.how.ttl.is_some() { 2 } else { HOLD_S };
        let hold = (limit - passed).as_secs().clamp(1, hold);
        let now = api.get(what, &format!("{path}?wait={hold}")).await?;
        if now["states"] != round["states"] {
            moved = Instant::now();
            if now["ended"] != true {
                ctx.out.remark(format!("{} …", states(&now)));
            }
        }
        round = now;
    }
    Ok(round)
}

/// Whether every device that has not ended waits for its command.
fn only_queued(round: &Value) -> bool {
    ["delivered", "accepted", "running"]
        .iter()
        .all(|state| round["states"][*state].as_u64().unwrap_or(0) == 0)
}

fn states(round: &Value) -> String {
    let states = round["states"].as_object().into_iter().flatten();
    let told: Vec<String> = states.map(|(state, count)| format!("{count} {state}")).collect();
    told.join(", ")
}

/// A line a device, the worst first, and the sums.
fn shown(verb: &str, round: &Value, devices: &[Value]) -> String {
    let probes = verb == "probes";
    let rank = |device: &Value| {
        let verdicts = ["failed", "warning", "unknown", "ok"];
        let verdict = verdicts.iter().position(|v| device["verdict"] == *v).unwrap_or(verdicts.len());
        let state = usize::from(device["state"] == "done");
        if probes { (state, verdict) } else { (state, 0) }
    };
    let mut sorted: Vec<&Value> = devices.iter().collect();
    sorted.sort_by_key(|device| rank(device));
    let rows = sorted.into_iter().map(|device| {
        let mut row = vec![text(device, "name"), short(&text(device, "device_id")), text(device, "state")];
        if probes {
            row.push(text(device, "verdict"));
            row.push(findings(device));
        } else {
            let said = [text(device, "code"), text(device, "message")];
            row.push(said.into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(": "));
        }
        row
    });
    let columns: &[&str] = if probes {
        &["device", "id", "state", "verdict", "found"]
    } else {
        &["device", "id", "state", "why"]
    };
    format!(
        "{}\n{} of {}: {}",
        table(columns, rows),
        round["verb"].as_str().unwrap_or(verb),
        round["total"],
        states(round)
    )
}

/// What is not well, or why nothing is known.
fn findings(device: &Value) -> String {
    let checks = device["checks"].as_object().into_iter().flatten();
    let bad: Vec<String> = checks
        .filter(|(_, verdict)| *verdict != "ok" && *verdict != "unknown")
        .map(|(name, verdict)| format!("{name} {}", verdict.as_str().unwrap_or_default()))
        .collect();
    if bad.is_empty() && device["state"] != "done" { text(device, "code") } else { bad.join(", ") }
}

/// The exit: whether any device did not do it, or any check failed.
fn judge(wish: &Wish<'_>, what: &str, round: &Value) -> Result<()> {
    let count = |states: &[&str]| -> u64 {
        states.iter().map(|state| round["states"][*state].as_u64().unwrap_or(0)).sum()
    };
    let next = format!("copal device list {} --filter '{}'", wish.fleet, wish.filter);
    let bad = count(&["failed", "rejected", "unknown"]);
    if bad > 0 {
        let why = format!("{bad} of {} devices did not do it", round["total"]);
        return Err(Failure::new(Kind::Failure, "devices_failed", what, why).next(next));
    }
    let sick = round["verdicts"]["failed"].as_u64().unwrap_or(0);
    if sick > 0 {
        let why = format!("a health check failed on {sick} of {} devices", round["total"]);
        return Err(
            Failure::new(Kind::Failure, "checks_failed", what, why).next("copal device diagnose DEVICE")
        );
    }
    let away = count(&["unreachable", "expired"]);
    if away > 0 {
        let why = format!("{away} of {} devices were not there", round["total"]);
        return Err(Failure::new(Kind::Timeout, "devices_away", what, why)
            .next("add --ttl 1d to let it wait for them"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_device_the_worst_first() {
        let device = |name: &str, state: &str, checks: Value, verdict: Value| {
            json!({"name": name, "device_id": "00112233445566778899aabbccddeeff", "state": state, "checks": checks,
                "verdict": verdict, "code": if state == "done" { Value::Null } else { json!("device_away") }, "message": ""})
        };
        let devices = [
            device("well", "done", json!({"disk": "ok", "slots": "unknown"}), json!("unknown")),
            device("sick", "done", json!({"clock": "warning", "disk": "failed"}), json!("failed")),
            device("away", "unreachable", Value::Null, Value::Null),
        ];
        let round =
            json!({"verb": "probes", "total": 3, "states": {"done": 2, "unreachable": 1}, "verdicts": {}});
        insta::assert_snapshot!(shown("probes", &round, &devices), @r"
        DEVICE  ID            STATE        VERDICT  FOUND
        away    001122334455  unreachable           device_away
        sick    001122334455  done         failed   clock warning, disk failed
        well    001122334455  done         unknown
        probes of 3: 2 done, 1 unreachable
        ");
    }

    #[test]
    fn the_exit_tells_whether_any_device_failed() {
        let filter: Filter = "online".parse().unwrap();
        let how = How { filter: None, expect: None, ttl: None, no_wait: false, timeout: 1 };
        let wish = Wish { fleet: "porch", filter: &filter, verb: "probes", args: json!({}), how: &how };
        let code = |round: Value| judge(&wish, "x", &round).err().map(|failure| failure.code);
        let over =
            |states: Value, verdicts: Value| json!({"total": 3, "states": states, "verdicts": verdicts});
        assert_eq!(code(over(json!({"done": 3}), json!({"ok": 1, "warning": 2}))), None);
        assert_eq!(code(over(json!({"done": 3}), json!({"failed": 1}))).as_deref(), Some("checks_failed"));
        assert_eq!(
            code(over(json!({"done": 2, "rejected": 1}), json!({}))).as_deref(),
            Some("devices_failed")
        );
        assert_eq!(
            code(over(json!({"done": 2, "unreachable": 1}), json!({}))).as_deref(),
            Some("devices_away")
        );
    }
}
