//! Releases: listed, deployed, and signed by the owner after a look at what is in them.

use std::time::Duration;

use copal_protocol::{
    documents::{BuildRecord, Document as _, Release, ReleaseMode, Role},
    ids::Sha256Hex,
};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{
    fleets::short_id,
    wait::{Awaited, Line, wait},
};
use crate::{
    args::{Deploy, ReleaseCommand},
    context::{Context, passphrase_of},
    failure::{Failure, Result},
    http::{Api, seg},
    inspect::{self, Signable},
    output::{ago, bytes, pairs, short, signed_by, table, text, when},
};

/// How many devices a deployment answers one by one.
const MAX_AWAITED: u64 = 500;

pub(super) async fn run(ctx: &Context, command: ReleaseCommand) -> Result<()> {
    let api = ctx.api()?;
    match command {
        ReleaseCommand::List { which, limit } => {
            let fleet = ctx.fleet(&api, which.as_deref()).await?;
            let path = format!("/fleets/{}/releases", seg(&fleet.slug));
            let releases = api.some("list the releases", &path, "", limit).await?;
            let columns = ["release", "version", "status", "commit", "made", "size", "devices", "note"];
            ctx.out.list(&releases, &columns, |r| {
                vec![
                    short(&text(r, "id")),
                    text(r, "version"),
                    text(r, "status"),
                    short(&text(r, "commit")),
                    ago(&r["created_at"], ctx.now),
                    r["size"].as_u64().map(bytes).unwrap_or_default(),
                    text(r, "devices_on"),
                    text(r, "note"),
                ]
            });
            Ok(())
        }
        ReleaseCommand::Show { release } => {
            let release = ctx.release(&api, &release).await?;
            ctx.out.result(&release, || human(&release));
            Ok(())
        }
        ReleaseCommand::Deploy(args) => Box::pin(deploy(ctx, &api, args)).await,
        ReleaseCommand::Sign { release, no_build_record } => {
            Box::pin(sign(ctx, &api, &release, no_build_record)).await
        }
        ReleaseCommand::Invalidate { release, undo } => {
            patch(ctx, &api, &release, "invalidate", &json!({ "invalidated": !undo })).await
        }
        ReleaseCommand::Note { release, note } => {
            patch(ctx, &api, &release, "note", &json!({ "note": note })).await
        }
        ReleaseCommand::Finalize { release } => {
            patch(ctx, &api, &release, "finalize", &json!({ "final": true })).await
        }
    }
}

async fn patch(ctx: &Context, api: &Api, word: &str, verb: &str, body: &Value) -> Result<()> {
    let id = text(&ctx.release(api, word).await?, "id");
    let what = format!("{verb} release {word}");
    let changed = api.call(&what, Method::PATCH, &format!("/releases/{}", seg(&id)), Some(body)).await?;
    ctx.out.result(&changed, || human(&changed));
    Ok(())
}

fn human(release: &Value) -> String {
    let mut out = pairs(&[
        ("release", text(release, "id")),
        ("version", text(release, "version")),
        ("fleet", text(release, "fleet")),
        ("status", text(release, "status")),
        ("counter", text(release, "counter")),
        ("commit", format!("{} {}", text(release, "commit"), text(release, "branch"))),
        ("made", when(&release["created_at"])),
        ("size", release["size"].as_u64().map(bytes).unwrap_or_default()),
        ("signed by", signed_by(release)),
        ("devices on it", text(release, "devices_on")),
        ("note", text(release, "note")),
    ]);
    let services = release["services"].as_object().into_iter().flatten();
    let rows: Vec<Vec<String>> = services
        .map(|(name, s)| {
            let digests = s["images"].as_object().into_iter().flatten().map(|(platform, image)| {
                format!("{platform} {}", short(text(image, "config_digest").trim_start_matches("sha256:")))
            });
            let size = s["size"].as_u64().map(bytes).unwrap_or_default();
            vec![name.clone(), digests.collect::<Vec<_>>().join(", "), size]
        })
        .collect();
    if !rows.is_empty() {
        out.push('\n');
        out.push_str(&table(&["service", "image", "size"], rows.into_iter()));
    }
    out
}

async fn deploy(ctx: &Context, api: &Api, args: Deploy) -> Result<()> {
    let what = format!("deploy {}", args.release);
    let (fleet, release) = if args.release == "latest" {
        (ctx.fleet(api, None).await?.slug, "latest".to_owned())
    } else {
        let release = ctx.release(api, &args.release).await?;
        let slug = text(&release, "fleet");
        if let Some(meant) = &ctx.globals.fleet
            && *meant != slug
        {
            return Err(Failure::usage(what, format!("it is a release of fleet {slug}, not of {meant}")));
        }
        (slug, text(&release, "id"))
    };
    let mut body = json!({ "release": release });
    if args.dry_run {
        body["dry_run"] = json!(true);
    }
    let mut ids = Vec::new();
    for word in &args.device {
        ids.push(text(&ctx.device(api, word).await?, "device_id"));
    }
    if !ids.is_empty() {
        body["devices"] = json!(ids);
    }
    if let Some(tag) = &args.tag {
        let (key, value) = tag.split_once('=').ok_or_else(|| Failure::usage(&what, "a tag is key=value"))?;
        body["tag"] = json!({ key: value });
    }
    let path = format!("/fleets/{}/deploy", seg(&fleet));
    if let Some(filter) = &args.filter {
        body["filter"] = json!(filter.to_string());
        if !args.dry_run {
            let count = count(ctx, api, &what, &path, &body, &args).await?;
            body["expect_count"] = json!(count);
        }
    }
    let answer = api.call(&what, Method::POST, &path, Some(&body)).await;
    let answer = answer.map_err(|failure| not_deployable(failure, &args.release))?;
    let count = text(&answer, "devices");
    if let Some(tag) = args.tag.as_deref().filter(|_| count == "0") {
        // A misspelt tag must not pass for a deployment.
        return Err(Failure::not_found(what, format!("no device of fleet {fleet} has the tag {tag}"))
            .next(format!("copal device list {fleet}; copal device tag DEVICE {tag}")));
    }
    if let Some(filter) = args.filter.as_ref().filter(|_| count == "0") {
        return Err(Failure::not_found(
            what,
            format!("no device of fleet {fleet} that is let in is so: {filter}"),
        )
        .next(format!("copal device list {fleet}")));
    }
    if args.filter.is_some() && args.wait {
        // Later the filter may mean others than those that were told.
        ids = answer["seqs"].as_object().into_iter().flatten().map(|(id, _)| id.clone()).collect();
    }
    ctx.out.result(&answer, || {
        let verb = if args.dry_run { "would be told" } else { "are told" };
        format!("{count} device(s) {verb} to run {}", short(&release))
    });
    if !args.wait || args.dry_run {
        return Ok(());
    }
    let awaited = Awaited {
        fleet: &fleet,
        line: Line::App,
        release: &release,
        ids: &ids,
        tag: args.tag.as_deref(),
        count: answer["devices"].as_u64().unwrap_or(0),
        limit: Duration::from_secs(args.timeout),
    };
    Box::pin(wait(ctx, api, &awaited)).await
}

/// How many devices the filter means, after the person saw it. That number is what the deployment is good for.
async fn count(ctx: &Context, api: &Api, what: &str, path: &str, body: &Value, args: &Deploy) -> Result<u64> {
    let mut ask = body.clone();
    ask["dry_run"] = json!(true);
    let answer = api.call(what, Method::POST, path, Some(&ask)).await;
    let answer = answer.map_err(|failure| not_deployable(failure, &args.release))?;
    let count = answer["devices"].as_u64().unwrap_or(0);
    if args.wait && count > MAX_AWAITED {
        return Err(Failure::usage(
            what,
            format!("{count} devices are so, and --wait with a filter is for {MAX_AWAITED} at most"),
        ));
    }
    if count > 0 {
        ctx.confirm(&format!(
            "{count} device(s) will be pinned to release {}. Go on?",
            text(&answer, "version")
        ))?;
    }
    Ok(count)
}

/// Says what to do about a release that cannot be deployed as it stands.
pub(super) fn not_deployable(failure: Failure, word: &str) -> Failure {
    let next = match failure.code.as_str() {
        "release_is_draft" => format!("copal release finalize {word}"),
        "release_invalidated" => format!("if it is good after all: copal release invalidate {word} --undo"),
        "awaiting_signature" => format!("copal release sign {word}"),
        _ => return failure,
    };
    failure.next(next)
}

async fn sign(ctx: &Context, api: &Api, word: &str, no_build_record: bool) -> Result<()> {
    let what = format!("sign release {word}");
    let shown = ctx.release(api, word).await?;
    let id: Sha256Hex = text(&shown, "id").parse().map_err(|e| Failure::trust("E_RELEASE_HASH", &what, e))?;
    let fleet = ctx.fleet(api, Some(&text(&shown, "fleet"))).await?;
    let (record, chain) = Box::pin(ctx.chain(api, &fleet)).await?;
    let envelope = api.bytes(&what, &format!("/releases/{id}/envelope"), Release::MAX_BYTES).await?;
    let path = format!("/releases/{id}/build-record");
    let built = api.maybe_bytes(&what, &path, BuildRecord::MAX_BYTES).await?.filter(|b| !b.is_empty());
    let signable = inspect::check(&chain.newest, record.app_id, id, &envelope, built.as_deref())
        .map_err(|e| Failure::verify(&what, &e).next("nothing was signed"))?;
    if signable.record.is_none() && !no_build_record {
        return Err(Failure::trust("build_record_missing", what, "the release names no build record")
            .next("sign it anyway with --no-build-record, if you know where it comes from"));
    }
    let keys = ctx.home.load_keys(&record.keys, Some(Role::Release), &mut passphrase_of)?;
    let listed = chain.newest.roles.get(&Role::Release).map(|role| role.keyids.clone()).unwrap_or_default();
    let keys: Vec<_> = keys.iter().filter(|k| listed.contains(&k.file.key.public().id())).collect();
    if keys.is_empty() {
        let why = format!("no release key of this machine is listed in root {}", chain.newest.version);
        return Err(Failure::trust("E_SIG_UNKNOWN_KEY", what, why)
            .next("on the machine with a root key: copal root add-key release PUBLIC (copal keys show)"));
    }
    ctx.out.remark(contents(&signable));
    if chain.newest.policy.release_mode == ReleaseMode::Builder {
        ctx.out.remark("this fleet's root asks for no signature of yours: the builder's alone makes it run");
    }
    ctx.confirm("Sign this release?")?;
    let mut signed = signable.envelope;
    for key in &keys {
        signed.add_signature(&key.file.key);
    }
    let path = format!("/releases/{id}/signatures");
    let answer = api.put_document(&what, Method::POST, &path, signed.to_bytes()).await?;
    ctx.out.result(&answer, || {
        let by: Vec<String> = keys.iter().map(|k| short_id(&k.file.key.public().id())).collect();
        format!(
            "signed {} with {}; it is {} now",
            short(&id.to_string()),
            by.join(", "),
            text(&answer, "status")
        )
    });
    Ok(())
}

/// What is about to be signed.
fn contents(signable: &Signable) -> String {
    let release = &signable.release;
    let mut rows = Vec::new();
    for (name, service) in &release.services {
        for (platform, image) in &service.images {
            let env: Map<String, Value> =
                service.spec.environment.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            let command = service.spec.command.as_ref().map(|c| c.join(" ")).unwrap_or_default();
            let remarkable = inspect::remarkable(&service.spec).join(", ");
            rows.push(vec![
                name.to_string(),
                platform.clone(),
                image.config_digest.to_string(),
                bytes(image.size),
                command,
                env.len().to_string(),
                service.overridable_env.iter().cloned().collect::<Vec<_>>().join(" "),
                remarkable,
            ]);
        }
    }
    let built = match &signable.record {
        Some(record) => {
            format!("from {} by {} on {}", record.source, record.builder, when(&json!(record.finished_at)))
        }
        None => "no build record".to_owned(),
    };
    let head = pairs(&[
        ("version", release.version.to_string()),
        ("counter", release.counter.to_string()),
        ("commit", release.commit.clone()),
        ("built", built),
        ("rollback floor", release.rollback_floor.to_string()),
    ]);
    let columns =
        ["service", "platform", "image", "size", "command", "env", "overridable", "asks of the host"];
    format!("{head}{}", table(&columns, rows.into_iter()))
}
