//! Operating systems and agents: a bundle becomes a release, and a release goes to devices.

use std::{io::Read as _, path::Path, time::Duration};

use copal_bundle::{Header, file::Span};
use copal_protocol::{
    documents::{Release, ReleaseKind},
    envelope::Envelope,
    ids::Sha256Hex,
    json as strict,
};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Value, json};

use super::wait::{Awaited, Line, wait};
use crate::{
    args::{OsCommand, OsDeploy, OsRelease, OsWithdraw, Place},
    context::{Context, Fleet},
    failure::{Failure, Result},
    http::{Api, seg},
    output::{ago, bytes, pairs, short, signed_by, table, text, when},
    upload::{self, Blob, Sent},
};

pub(super) async fn run(ctx: &Context, command: OsCommand) -> Result<()> {
    match command {
        // Bundles are made on this machine, by people who need not be signed in.
        OsCommand::Bundle(command) => super::os_bundle::run(ctx, command),
        OsCommand::Release(args) => Box::pin(release(ctx, &ctx.api()?, args)).await,
        OsCommand::List { which, limit } => {
            let api = ctx.api()?;
            let fleet = ctx.fleet(&api, Some(&which)).await?;
            let path = format!("/fleets/{}/host-releases", seg(&fleet.slug));
            let releases = api.some("list the operating systems", &path, "", limit).await?;
            let columns = [
                "release",
                "kind",
                "version",
                "for",
                "made",
                "size",
                "given",
                "running",
                "target",
                "withdrawn",
            ];
            ctx.out.list(&releases, &columns, |r| {
                vec![
                    short(&text(r, "id")),
                    text(r, "line"),
                    text(r, "version"),
                    made_for(r),
                    ago(&r["created_at"], ctx.now),
                    r["size"].as_u64().map(bytes).unwrap_or_default(),
                    text(r, "devices_given"),
                    text(r, "devices_on"),
                    text(r, "is_target"),
                    text(r, "withdrawn"),
                ]
            });
            Ok(())
        }
        OsCommand::Show { which, release } => {
            let api = ctx.api()?;
            let fleet = ctx.fleet(&api, Some(&which)).await?;
            let found = find(&api, &fleet, &release).await?;
            ctx.out.result(&found, || human(&found));
            Ok(())
        }
        OsCommand::Deploy(args) => Box::pin(deploy(ctx, &ctx.api()?, args)).await,
        OsCommand::Withdraw(args) => withdraw(ctx, &ctx.api()?, args).await,
        OsCommand::Unpin { device } => {
            let api = ctx.api()?;
            let found = ctx.device(&api, &device).await?;
            super::devices::patch(ctx, &api, &found, "unpin", &json!({ "unpin_host": true })).await
        }
        OsCommand::Retry { which, release, place } => {
            let api = ctx.api()?;
            let fleet = ctx.fleet(&api, Some(&which)).await?;
            let found = find(&api, &fleet, &release).await?;
            let what = format!("retry {release}");
            let body = place_body(ctx, &api, &what, &place).await?;
            let answer = api.call(&what, Method::POST, &path(&fleet, &found, "/retry"), Some(&body)).await?;
            ctx.out.result(&answer, || {
                format!(
                    "{} device(s) are asked to try {} again",
                    text(&answer, "count"),
                    text(&found, "version")
                )
            });
            Ok(())
        }
        OsCommand::Window { which, window } => {
            let api = ctx.api()?;
            let fleet = ctx.fleet(&api, Some(&which)).await?;
            let what = format!("set the window of fleet {}", fleet.slug);
            let body = json!({ "reboot_window": window.0 });
            let path = format!("/fleets/{}/reboot-window", seg(&fleet.slug));
            let answer = api.call(&what, Method::PUT, &path, Some(&body)).await?;
            ctx.out.result(&answer, || match answer["reboot_window"].as_str() {
                Some(window) => format!("devices of {} reboot between {window} UTC only", fleet.slug),
                None => format!("devices of {} reboot at any time", fleet.slug),
            });
            Ok(())
        }
    }
}

fn path(fleet: &Fleet, release: &Value, rest: &str) -> String {
    format!("/fleets/{}/host-releases/{}{rest}", seg(&fleet.slug), seg(&text(release, "id")))
}

fn words(value: &Value) -> String {
    let words = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    words.collect::<Vec<_>>().join(" ")
}

fn made_for(release: &Value) -> String {
    let types = words(&release["device_types"]);
    if types.is_empty() { words(&release["arch"]) } else { types }
}

fn human(release: &Value) -> String {
    let mut out = pairs(&[
        ("release", text(release, "id")),
        ("kind", text(release, "line")),
        ("version", text(release, "version")),
        ("fleet", text(release, "fleet")),
        ("for", format!("{} {}", words(&release["device_types"]), words(&release["arch"]))),
        ("counter", text(release, "counter")),
        ("rollback floor", text(release, "rollback_floor")),
        ("from version", text(release, "min_from")),
        ("data schema", text(release, "data_schema")),
        ("made", when(&release["created_at"])),
        ("size here", release["size"].as_u64().map(bytes).unwrap_or_default()),
        ("signed by", signed_by(release)),
        ("withdrawn", text(release, "withdrawn")),
        ("fleet's target", text(release, "is_target")),
        ("given to", format!("{} device(s)", text(release, "devices_given"))),
        ("runs on", format!("{} device(s)", text(release, "devices_on"))),
    ]);
    let payloads = release["payloads"].as_object().into_iter().flatten();
    let rows = payloads.map(|(name, payload)| {
        let size = payload["size"].as_u64().map(bytes).unwrap_or_default();
        vec![name.clone(), size, text(payload, "sha256")]
    });
    out.push('\n');
    out.push_str(&table(&["payload", "size", "sha256"], rows));
    out
}

/// A host release by its id, the beginning of its id, its version, or `latest`.
pub(super) async fn find(api: &Api, fleet: &Fleet, word: &str) -> Result<Value> {
    let what = format!("find {word} of fleet {}", fleet.slug);
    let list = format!("/fleets/{}/host-releases", seg(&fleet.slug));
    if word.parse::<Sha256Hex>().is_ok() {
        return api.get(&what, &format!("{list}/{word}")).await;
    }
    let mut found = api.all(&what, &list, "").await?;
    if word == "latest" {
        // An agent is not what is meant by the newest operating system.
        let system = found.iter().position(|r| text(r, "line") == "os");
        return system.map(|n| found.swap_remove(n)).ok_or_else(|| {
            Failure::not_found(what, "the fleet has no operating system yet")
                .next("copal os release FLEET FILE")
        });
    }
    found.retain(|r| text(r, "version") == word || (word.len() >= 4 && text(r, "id").starts_with(word)));
    match (found.len(), found.pop()) {
        (1, Some(release)) => Ok(release),
        (0, _) => Err(Failure::not_found(what, "there is no such operating system or agent")
            .next(format!("copal os list {}", fleet.slug))),
        (n, _) => Err(Failure::usage(what, format!("{n} fit")).next("use the beginning of the id")),
    }
}

async fn place_body(ctx: &Context, api: &Api, what: &str, place: &Place) -> Result<Value> {
    let mut body = json!({});
    if place.all {
        body["all"] = json!(true);
    }
    if !place.device.is_empty() {
        let mut ids = Vec::new();
        for word in &place.device {
            ids.push(text(&ctx.device(api, word).await?, "device_id"));
        }
        body["devices"] = json!(ids);
    }
    if let Some(tag) = &place.tag {
        let (key, value) = tag.split_once('=').ok_or_else(|| Failure::usage(what, "a tag is key=value"))?;
        body["tag"] = json!({ key: value });
    }
    if body.as_object().is_some_and(serde_json::Map::is_empty) {
        return Err(Failure::usage(what, "where is not said").next("add --device, --tag or --all"));
    }
    Ok(body)
}

async fn deploy(ctx: &Context, api: &Api, args: OsDeploy) -> Result<()> {
    let fleet = ctx.fleet(api, Some(&args.which)).await?;
    let found = find(api, &fleet, &args.release).await?;
    let what = format!("deploy {}", args.release);
    let mut body = place_body(ctx, api, &what, &args.place).await?;
    if args.dry_run {
        body["dry_run"] = json!(true);
    }
    let answer = api.call(&what, Method::POST, &path(&fleet, &found, "/deploy"), Some(&body)).await;
    let answer = answer.map_err(|failure| match failure.code.as_str() {
        "release_invalidated" => {
            let (slug, word) = (&fleet.slug, &args.release);
            failure.next(format!("if it is good after all: copal os withdraw {slug} {word} --undo"))
        }
        _ => failure,
    })?;
    if let Some(tag) = args.place.tag.as_deref().filter(|_| answer["devices"] == 0) {
        // A misspelt tag must not pass for a deployment.
        return Err(Failure::not_found(what, format!("no device of fleet {} has the tag {tag}", fleet.slug))
            .next(format!("copal device list {}; copal device tag DEVICE {tag}", fleet.slug)));
    }
    ctx.out.result(&answer, || {
        let verb = if args.dry_run { "would be told" } else { "are told" };
        let (count, version) = (text(&answer, "devices"), text(&answer, "version"));
        format!("{count} device(s) {verb} to run {} {version}", text(&found, "line"))
    });
    if !args.wait || args.dry_run {
        return Ok(());
    }
    let ids = body["devices"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let awaited = Awaited {
        fleet: &fleet.slug,
        line: Line::Host(if found["line"] == "agent" { "agent" } else { "os" }),
        release: &text(&found, "id"),
        ids: &ids.map(str::to_owned).collect::<Vec<_>>(),
        tag: args.place.tag.as_deref(),
        count: answer["devices"].as_u64().unwrap_or(0),
        limit: Duration::from_secs(args.timeout),
    };
    Box::pin(wait(ctx, api, &awaited)).await
}

async fn withdraw(ctx: &Context, api: &Api, args: OsWithdraw) -> Result<()> {
    let fleet = ctx.fleet(api, Some(&args.which)).await?;
    let found = find(api, &fleet, &args.release).await?;
    let what = format!("withdraw {}", args.release);
    let body = match &args.reason {
        Some(reason) => json!({ "reason": reason }),
        None => json!({ "undo": true }),
    };
    let answer = api.call(&what, Method::POST, &path(&fleet, &found, "/withdraw"), Some(&body)).await?;
    ctx.out.result(&answer, || {
        let named = format!("{} {}", text(&found, "line"), text(&found, "version"));
        if args.undo {
            return format!("{named} may be deployed again; no device is told to run it by that");
        }
        let target = text(&answer, "target");
        let target = if target.is_empty() { "nothing".to_owned() } else { short(&target) };
        format!(
            "{named} is withdrawn; {} device(s) were given it and go back to what they were to run before. The fleet is to run {target}",
            text(&answer, "devices")
        )
    });
    Ok(())
}

/// A signed bundle file, as far as it can be judged here.
struct Bundle {
    envelope: Vec<u8>,
    release: Release,
    /// Name, place and hash of each blob; those without a byte are left out.
    blobs: Vec<(String, Span, Sha256Hex)>,
}

fn open(file: &Path, fleet: &Fleet) -> Result<Bundle> {
    let what = format!("release {}", file.display());
    let mut open = std::fs::File::open(file).map_err(|e| Failure::local(&what, e))?;
    let contents = copal_bundle::file::read(&mut open)
        .map_err(|e| Failure::usage(&what, e).next("copal os bundle inspect FILE"))?;
    let document: Value = serde_json::from_slice(&contents.release).map_err(|e| Failure::usage(&what, e))?;
    if document.get("unsigned").is_some() {
        return Err(Failure::usage(&what, "the bundle is not signed")
            .next(format!("copal os bundle sign {}", file.display())));
    }
    let envelope = Envelope::parse::<Release>(&contents.release).map_err(|e| Failure::verify(&what, &e))?;
    let release: Release = strict::from_slice(envelope.payload(), strict::PAYLOAD_DEPTH)
        .map_err(|e| Failure::trust("E_PAYLOAD", &what, e))?;
    if release.kind != ReleaseKind::Host {
        return Err(Failure::usage(&what, "it is a release of an app; those come from a push"));
    }
    if release.fleet_id != fleet.fleet_id {
        let why = format!("it is for the fleet {}, {} is {}", release.fleet_id, fleet.slug, fleet.fleet_id);
        return Err(Failure::usage(&what, why).next("make a bundle for this fleet: copal os bundle create"));
    }
    let mut blobs = Vec::new();
    for payload in contents.payloads {
        let name = &payload.name;
        let named = release.payloads.iter().find(|(n, _)| n.as_str() == name).map(|(_, p)| p);
        let named = named.ok_or_else(|| {
            Failure::usage(&what, format!("it carries {name}, which its release does not name"))
        })?;
        let data = match (payload.index, &named.index) {
            (Some(span), Some(index)) => {
                blobs.push((format!("{name}.index"), span, index.sha256));
                Sha256Hex::from_bytes(
                    header(&mut open, span).map_err(|e| Failure::usage(&what, e))?.data_sha256,
                )
            }
            (None, None) => named.sha256,
            _ => return Err(Failure::usage(&what, format!("index and release of {name} do not fit"))),
        };
        if payload.data.size > 0 {
            blobs.push((format!("{name}.data"), payload.data, data));
        }
    }
    Ok(Bundle { envelope: contents.release, release, blobs })
}

fn header(file: &mut std::fs::File, span: Span) -> std::result::Result<Header, String> {
    use std::io::Seek as _;
    let mut bytes = Vec::new();
    file.seek(std::io::SeekFrom::Start(span.offset)).map_err(|e| e.to_string())?;
    file.take(span.size.min(Header::LEN as u64)).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Header::parse(&bytes).map_err(|e| e.to_string())
}

async fn release(ctx: &Context, api: &Api, args: OsRelease) -> Result<()> {
    let fleet = ctx.fleet(api, Some(&args.which)).await?;
    let what = format!("release {}", args.file.display());
    let bundle = open(&args.file, &fleet)?;
    let place = Place { device: args.device, tag: args.tag, all: args.deploy.is_some() };
    let deploys = place.all || place.tag.is_some() || !place.device.is_empty();
    // Before hundreds of megabytes: whether the place is one.
    let body = if deploys { Some(place_body(ctx, api, &what, &place).await?) } else { None };
    let mut total = Sent::default();
    for (name, span, sha256) in &bundle.blobs {
        let blob = Blob { name, file: &args.file, span: *span, sha256: *sha256 };
        let bar = bar(ctx, name, span.size);
        let sent = upload::upload(api, &fleet.slug, &blob, Duration::from_secs(args.patience), &bar).await?;
        bar.finish_and_clear();
        ctx.out.remark(match sent.skipped {
            0 => format!("{name}: {} uploaded", bytes(sent.sent)),
            _ if sent.sent == 0 => format!("{name}: {} are in the cloud already", bytes(sent.skipped)),
            had => format!("{name}: {} uploaded, {} were in the cloud already", bytes(sent.sent), bytes(had)),
        });
        total.sent += sent.sent;
        total.skipped += sent.skipped;
    }
    let path_all = format!("/fleets/{}/host-releases", seg(&fleet.slug));
    let made = api.put_document(&what, Method::POST, &path_all, bundle.envelope).await?;
    let deployed = match body {
        Some(body) => {
            Some(api.call(&what, Method::POST, &path(&fleet, &made, "/deploy"), Some(&body)).await?)
        }
        None => None,
    };
    let value = json!({
        "release": made, "uploaded": total.sent, "skipped": total.skipped, "deployed": deployed,
    });
    ctx.out.result(&value, || {
        let (line, id) = (text(&made, "line"), short(&text(&made, "id")));
        let made = format!("{line} {} is release {id} of fleet {}", bundle.release.version, fleet.slug);
        match &deployed {
            Some(deployed) => format!("{made}; {} device(s) are told to run it", text(deployed, "devices")),
            None => format!("{made}\nnext: copal os deploy {} {id} --device DEVICE", fleet.slug),
        }
    });
    Ok(())
}

fn bar(ctx: &Context, name: &str, size: u64) -> ProgressBar {
    if !ctx.out.interactive() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(size);
    let style =
        ProgressStyle::with_template("{msg:16} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(name.to_owned());
    bar
}
