//! Devices: the file they join with is made here, with the owner's root and a secret the server never sees.

use copal_filter::Filter;
use copal_protocol::{config::DeviceFile, documents::SPEC};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::releases::not_deployable;
use crate::{
    args::{CardsCommand, DeviceCommand, DeviceConfig, EnrolmentCommand},
    context::Context,
    failure::{Failure, Kind, Result},
    home::{Existing, fleets::Introduction, write_private},
    http::{Api, address, seg, server_url},
    output::{ago, pairs, scalar, short, table, text, when},
};

pub(super) async fn run(ctx: &Context, command: DeviceCommand) -> Result<()> {
    let api = ctx.api()?;
    match command {
        DeviceCommand::Config(args) => Box::pin(config(ctx, &api, args)).await,
        DeviceCommand::List { which, tag, filter } => {
            let fleet = ctx.fleet(&api, which.as_deref()).await?;
            let tag = tag.map(|tag| format!("&tag={}", seg(&tag))).unwrap_or_default();
            let query = format!("{tag}{}", query(filter.as_ref()));
            let path = format!("/fleets/{}/devices", seg(&fleet.slug));
            let devices = api.all("list the devices", &path, &query).await?;
            let columns = ["device", "id", "state", "seen", "release", "os", "on target", "why not"];
            ctx.out.list(&devices, &columns, |d| row(d, ctx.now));
            Ok(())
        }
        DeviceCommand::Show { device } => {
            let found = ctx.device(&api, &device).await?;
            // A list leaves out what the device told it has.
            let path = format!("/devices/{}", seg(&text(&found, "device_id")));
            let device = api.get(&format!("show device {}", text(&found, "name")), &path).await?;
            ctx.out.result(&device, || human(&device, ctx.now));
            Ok(())
        }
        DeviceCommand::Pin { device, release } => {
            let found = ctx.device(&api, &device).await?;
            let wanted = release_for(ctx, &api, &found, &release).await?;
            let pinned = patch(ctx, &api, &found, "pin", &json!({ "pinned_release": wanted["id"] })).await;
            pinned.map_err(|failure| not_deployable(failure, &release))
        }
        DeviceCommand::Unpin { device } => {
            let found = ctx.device(&api, &device).await?;
            patch(ctx, &api, &found, "unpin", &json!({ "pinned_release": null })).await
        }
        DeviceCommand::Rename { device, name } => {
            let found = ctx.device(&api, &device).await?;
            patch(ctx, &api, &found, "rename", &json!({ "name": name })).await
        }
        DeviceCommand::Tag { device, tags } => {
            let tags = parse_tags(&tags)?;
            let found = ctx.device(&api, &device).await?;
            patch(ctx, &api, &found, "tag", &json!({ "tags": tags })).await
        }
        DeviceCommand::Revoke { device } => {
            let found = ctx.device(&api, &device).await?;
            let name = text(&found, "name");
            ctx.confirm(&format!("Device {name} will be shut out for good. Go on?"))?;
            act(ctx, &api, &found, "revoke").await
        }
        DeviceCommand::Accept { device } => {
            let found = ctx.device(&api, &device).await?;
            act(ctx, &api, &found, "accept").await
        }
        DeviceCommand::Retry { device } => {
            let found = ctx.device(&api, &device).await?;
            act(ctx, &api, &found, "retry").await
        }
        DeviceCommand::Events { device, limit, since, kind } => {
            let asked = super::telemetry::Asked { limit, since, kind };
            super::telemetry::events(ctx, &api, &device, asked).await
        }
        DeviceCommand::Metrics { device, since, watch } => {
            Box::pin(super::telemetry::metrics(ctx, &api, &device, since, watch)).await
        }
        DeviceCommand::Act(command) => Box::pin(super::acts::run(ctx, &api, command)).await,
        DeviceCommand::Tokens(command) => tokens(ctx, &api, command).await,
        DeviceCommand::Cards(command) => cards(ctx, &api, command).await,
    }
}

/// A release named on the command line, looked for in the device's own fleet.
async fn release_for(ctx: &Context, api: &Api, device: &Value, word: &str) -> Result<Value> {
    let mut globals = ctx.globals.clone();
    let fleet = text(device, "fleet");
    if !fleet.is_empty() {
        globals.fleet = Some(fleet);
    }
    let of_fleet = Context { home: ctx.home.clone(), out: ctx.out, globals, now: ctx.now };
    of_fleet.release(api, word).await
}

/// The part of a query that asks for devices a filter means.
pub(super) fn query(filter: Option<&Filter>) -> String {
    filter.map(|filter| format!("&filter={}", seg(&filter.to_string()))).unwrap_or_default()
}

/// `key=value` sets, `key=` removes.
fn parse_tags(words: &[String]) -> Result<Map<String, Value>> {
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some((key, "")) if !key.is_empty() => Ok((key.to_owned(), Value::Null)),
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), json!(value))),
            _ => Err(Failure::usage(format!("use the tag {word:?}"), "key=value sets, key= removes")),
        })
        .collect()
}

pub(super) async fn patch(ctx: &Context, api: &Api, device: &Value, verb: &str, body: &Value) -> Result<()> {
    let id = text(device, "device_id");
    let what = format!("{verb} device {}", text(device, "name"));
    let changed = api.call(&what, Method::PATCH, &format!("/devices/{}", seg(&id)), Some(body)).await?;
    ctx.out.result(&changed, || human(&changed, ctx.now));
    Ok(())
}

async fn act(ctx: &Context, api: &Api, device: &Value, verb: &str) -> Result<()> {
    let (id, name) = (text(device, "device_id"), text(device, "name"));
    let what = format!("{verb} device {name}");
    let answer = api.call(&what, Method::POST, &format!("/devices/{}/{verb}", seg(&id)), None).await?;
    let value = if answer.is_object() { answer } else { json!({ "device_id": id, "name": name }) };
    ctx.out.result(&value, || format!("{verb}: {name} ({})", short(&id)));
    Ok(())
}

/// Shows what the health checks of a device last found.
pub(super) async fn health(ctx: &Context, api: &Api, device: &str) -> Result<()> {
    let found = ctx.device(api, device).await?;
    let (fleet, id) = (text(&found, "fleet"), text(&found, "device_id"));
    let path = format!("/fleets/{}/devices/{}/health", seg(&fleet), seg(&id));
    let health = api.get(&format!("show the health of device {}", text(&found, "name")), &path).await?;
    ctx.out.result(&health, || checks(&health, ctx.now));
    Ok(())
}

fn checks(health: &Value, now: u64) -> String {
    let mut checks: Vec<&Value> = health["checks"].as_array().into_iter().flatten().collect();
    if checks.is_empty() {
        return "the device has not told of any health check yet".to_owned();
    }
    let worst = ["failed", "warning", "unknown", "ok"];
    checks.sort_by_key(|c| worst.iter().position(|v| c["verdict"] == *v));
    let rows = checks.into_iter().map(|c| {
        let subject = text(c, "subject");
        let name =
            if subject.is_empty() { text(c, "name") } else { format!("{} {subject}", text(c, "name")) };
        vec![
            text(c, "verdict"),
            name,
            ago(&c["at"], now),
            ago(&c["since"], now),
            text(c, "detail"),
            text(c, "advice"),
        ]
    });
    table(&["verdict", "check", "looked", "since", "found", "what to do"], rows)
}

/// Health in one line.
fn health_word(device: &Value, now: u64) -> String {
    let health = text(device, "health");
    if health.is_empty() { health } else { format!("{health} ({})", ago(&device["health_at"], now)) }
}

/// Why a device is not on target, in one sentence.
pub(super) fn reason(device: &Value) -> String {
    let reason = &device["reason"];
    let (code, message) = (text(reason, "code"), text(reason, "message"));
    match (code.is_empty(), message.is_empty()) {
        (true, _) => String::new(),
        (false, true) => code,
        (false, false) => format!("{code}: {message}"),
    }
}

/// The release a device has committed, as people call it.
pub(super) fn release_word(device: &Value) -> String {
    let of = &device["committed_release"];
    short(&if of.is_object() { text(of, "version") } else { scalar(of) })
}

/// Where a device stands; a suspected clone waits for `copal device accept`.
fn state_word(device: &Value) -> String {
    let clone = if device["clone_suspected"] == true { ", clone suspected" } else { "" };
    format!("{}{clone}", text(device, "state"))
}

/// When it was heard; one that spares its bytes says when it is heard again.
fn seen_word(device: &Value, now: u64) -> String {
    match device["next_poll_by"].as_u64() {
        _ if device["online"] == true => "online".to_owned(),
        Some(_) => format!("metered, {}", ago(&device["last_seen"], now)),
        None => ago(&device["last_seen"], now),
    }
}

pub(super) fn row(device: &Value, now: u64) -> Vec<String> {
    let seen = seen_word(device, now);
    let state = state_word(device);
    vec![
        text(device, "name"),
        short(&text(device, "device_id")),
        state,
        seen,
        release_word(device),
        text(&device["os"], "version"),
        text(device, "on_target"),
        reason(device),
    ]
}

fn human(device: &Value, now: u64) -> String {
    let tags = device["tags"].as_object().into_iter().flatten();
    let tags: Vec<String> = tags.map(|(key, value)| format!("{key}={}", scalar(value))).collect();
    let target = &device["target"];
    let mut out = pairs(&[
        ("device", text(device, "name")),
        ("id", text(device, "device_id")),
        ("fleet", text(device, "fleet")),
        ("state", state_word(device)),
        ("seen", seen_word(device, now)),
        ("next poll by", when(&device["next_poll_by"])),
        ("channel", channel_word(device)),
        ("type", format!("{}, {}", text(device, "device_type"), text(device, "arch"))),
        ("agent", text(device, "agent_version")),
        ("system", text(device, "os_version")),
        ("tags", tags.join(", ")),
        ("root", format!("{} {}", text(device, "root_version"), text(device, "lock"))),
        ("pinned to", short(&text(device, "pinned_release"))),
        ("target", format!("{} {}", short(&text(target, "release")), text(target, "version"))),
        ("committed", release_word(device)),
        ("health", health_word(device, now)),
        ("on target", text(device, "on_target")),
        ("why not", reason(device)),
        ("what to do", text(&device["reason"], "next")),
    ]);
    let apps = device["running"].as_object().into_iter().flatten();
    let services = apps.flat_map(|(_, services)| services.as_object().into_iter().flatten());
    let rows: Vec<Vec<String>> = services
        .map(|(name, s)| {
            let digest = text(s, "config_digest");
            let image = short(digest.trim_start_matches("sha256:"));
            vec![name.clone(), text(s, "state"), text(s, "restarts"), text(s, "exit_code"), image]
        })
        .collect();
    if !rows.is_empty() {
        out.push('\n');
        out.push_str(&table(&["service", "state", "restarts", "exit code", "image"], rows.into_iter()));
    }
    out.push_str(&system(device));
    out.push_str(&super::telemetry::facts(device, now));
    let tail = device["reason"]["log_tail"].as_array().into_iter().flatten().map(scalar);
    let tail: Vec<String> = tail.map(|line| format!("  {}", crate::output::safe(&line))).collect();
    if !tail.is_empty() {
        out.push_str(&format!("\n\nlast lines\n{}", tail.join("\n")));
    }
    out
}

/// What its channel goes by.
fn channel_word(device: &Value) -> String {
    match device["channel"].as_str() {
        Some("exchange") => {
            "long polling: no WebSocket passes, so no logs, terminals or live metrics".to_owned()
        }
        Some("socket") => "WebSocket".to_owned(),
        other => other.unwrap_or_default().to_owned(),
    }
}

/// The slots of a device's operating system, and where that and the agent are on their way to.
fn system(device: &Value) -> String {
    let mut out = String::new();
    let os = &device["os"];
    let rows: Vec<Vec<String>> = os["slots"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, slot)| {
            let booted = if slot["booted"] == true { "booted" } else { "" };
            vec![
                name.clone(),
                text(slot, "state"),
                booted.to_owned(),
                text(slot, "version"),
                short(&text(slot, "release")),
            ]
        })
        .collect();
    if !rows.is_empty() {
        out.push('\n');
        out.push_str(&table(&["slot", "state", "", "version", "release"], rows.into_iter()));
        out.push('\n');
    }
    for (name, of) in [("os", os), ("agent", &device["agent"])] {
        if !of.is_object() {
            continue;
        }
        let progress = &of["progress"];
        let (done, total) = (progress["done"].as_u64(), progress["total"].as_u64());
        let amount = match (done, total) {
            (Some(done), Some(total)) if total > 0 => format!(" {} %", done.min(total) * 100 / total),
            _ => String::new(),
        };
        let target = &of["target"];
        let words = [
            (
                format!("{name} target"),
                format!("{} {}", text(target, "version"), short(&text(target, "release"))),
            ),
            (format!("{name} pinned"), short(&text(of, "pinned"))),
            (format!("{name} progress"), format!("{}{amount}", text(progress, "stage"))),
            (format!("{name} undone"), short(&text(of, "failed"))),
            (format!("{name} why not"), reason(of)),
        ];
        let said: Vec<(&str, String)> = words
            .iter()
            .filter(|(_, v)| !v.trim().is_empty())
            .map(|(n, v)| (n.as_str(), v.clone()))
            .collect();
        if !said.is_empty() {
            out.push('\n');
            out.push_str(&pairs(&said));
        }
    }
    out
}

/// Makes a `copal.json`. The order matters: the secret is on this disk before the token exists, and the token before
/// the file, so that whatever stops it in between leaves nothing that is half trusted.
async fn config(ctx: &Context, api: &Api, args: DeviceConfig) -> Result<()> {
    let fleet = ctx.fleet(api, args.which.as_deref()).await?;
    let what = format!("make a copal.json for fleet {}", fleet.slug);
    let (record, chain) = Box::pin(ctx.chain(api, &fleet)).await?;
    copal_protocol::verify::root_in_time(&chain.newest, ctx.now)
        .map_err(|e| Failure::verify(&what, &e).next("copal root renew"))?;
    let to_stdout = args.out.as_os_str() == "-";
    if !to_stdout && !args.force && args.out.exists() {
        return Err(
            Failure::local(what, format!("{} is there already", args.out.display())).next("add --force")
        );
    }
    let server = api.address();
    let cloud_url = match &args.cloud_url {
        Some(url) => address(&server_url(url)?),
        None => server.clone(),
    };
    let introduction = Introduction::generate(record.fleet_id, args.name.clone(), ctx.now)?;
    let mut body = json!({ "uses": args.uses, "expires_in_s": args.expires });
    if let Some(name) = &args.name {
        body["name"] = json!(name);
    }
    ctx.home.save_introduction(&introduction)?;
    let path = format!("/fleets/{}/enrolment-tokens", seg(&fleet.slug));
    let made = match api.call(&what, Method::POST, &path, Some(&body)).await {
        Ok(made) => made,
        Err(failure) => {
            ctx.home.forget_introduction(&introduction.id)?;
            return Err(failure);
        }
    };
    let token = text(&made, "token");
    if copal_protocol::enrol::split_token(&token).is_none() {
        return Err(Failure::new(
            Kind::Network,
            "answer_not_understood",
            what,
            "no enrolment token came back",
        ));
    }
    let file = DeviceFile {
        spec: SPEC,
        fleet_id: record.fleet_id,
        cloud_url: cloud_url.clone(),
        tls_pins: ctx.pins(&server)?,
        root: serde_json::from_slice(&chain.last().to_bytes()).map_err(|e| Failure::local(&what, e))?,
        enrolment_token: token,
        device_type: text(&fleet.value, "device_type"),
        name: args.name.clone(),
        introduction: Some(introduction.token()),
    };
    let bytes = serde_json::to_vec_pretty(&file).map_err(|e| Failure::local(&what, e))?;
    if to_stdout {
        ctx.out.line(&String::from_utf8_lossy(&bytes));
        return Ok(());
    }
    let existing = if args.force { Existing::Replace } else { Existing::Keep };
    write_private(&args.out, &bytes, existing)?;
    let result = json!({
        "file": args.out, "fleet": fleet.slug, "cloud_url": cloud_url, "root_version": chain.newest.version,
        "uses": args.uses, "expires_at": made["expires_at"], "introduction_id": introduction.id,
        "enrolment_token_id": made["id"],
    });
    ctx.out.result(&result, || {
        pairs(&[
            ("wrote", args.out.display().to_string()),
            ("fleet", format!("{}, root {}", fleet.slug, chain.newest.version)),
            ("server", cloud_url.clone()),
            ("good for", format!("{} device(s), until {}", args.uses, when(&made["expires_at"]))),
        ])
    });
    ctx.out.remark("next: put it on the device as /etc/copal/copal.json (mode 600) and start copal-agent");
    if cloud_url.starts_with("http://") {
        ctx.out.remark("this address is loopback: only an agent on this machine can use it");
    }
    Ok(())
}

async fn tokens(ctx: &Context, api: &Api, command: EnrolmentCommand) -> Result<()> {
    match command {
        EnrolmentCommand::List { which } => {
            let fleet = ctx.fleet(api, which.as_deref()).await?;
            let path = format!("/fleets/{}/enrolment-tokens", seg(&fleet.slug));
            let tokens = api.all("list the enrolment tokens", &path, "").await?;
            ctx.out.list(&tokens, &["token", "for", "devices left", "made", "until"], |t| {
                vec![
                    text(t, "id"),
                    text(t, "note"),
                    text(t, "uses"),
                    when(&t["created_at"]),
                    when(&t["expires_at"]),
                ]
            });
        }
        EnrolmentCommand::Revoke { token } => {
            // The whole token stands in a copal.json; only its public part goes into a URL.
            let id = token.split_once('.').map_or(token.as_str(), |(id, _)| id);
            let fleet = ctx.fleet(api, None).await?;
            let path = format!("/fleets/{}/enrolment-tokens/{}", seg(&fleet.slug), seg(id));
            api.call(&format!("revoke the enrolment token {id}"), Method::DELETE, &path, None).await?;
            ctx.out.result(&json!({ "id": id, "revoked": true }), || format!("revoked {id}"));
        }
    }
    Ok(())
}

async fn cards(ctx: &Context, api: &Api, command: CardsCommand) -> Result<()> {
    match command {
        CardsCommand::List => {
            let fleet = ctx.fleet(api, None).await?;
            let cards: Vec<Value> = ctx
                .home
                .introductions(fleet.fleet_id)?
                .into_iter()
                .map(|card| {
                    json!({
                        "id": card.id, "name": card.name, "created_at": card.created_at,
                        "devices_proven": card.keys_seen.len(),
                    })
                })
                .collect();
            ctx.out.list(&cards, &["card", "name", "made", "devices proven"], |c| {
                vec![text(c, "id"), text(c, "name"), when(&c["created_at"]), text(c, "devices_proven")]
            });
        }
        CardsCommand::Forget { card } => {
            ctx.confirm("A device of this card can never prove a lock again. Go on?")?;
            if !ctx.home.forget_introduction(&card)? {
                return Err(Failure::not_found(format!("forget card {card}"), "no such card was made here")
                    .next("copal device cards list"));
            }
            ctx.out.result(&json!({ "id": card, "forgotten": true }), || format!("forgot card {card}"));
        }
    }
    Ok(())
}
