//! Builds: followed, repeated, or begun from a folder.

use std::{io::Write as _, time::Duration};

use futures_util::StreamExt as _;
use reqwest::{Method, header};
use serde_json::{Value, json};

use crate::{
    args::{BuildCommand, Push},
    context::Context,
    failure::{Failure, Kind, Result},
    http::{Api, seg},
    output::{ago, bytes, pairs, safe_lines, short, text, when},
    pack::pack,
};

pub(super) async fn run(ctx: &Context, command: BuildCommand) -> Result<()> {
    let api = ctx.api()?;
    match command {
        BuildCommand::List { which, limit } => {
            let builds = builds(ctx, &api, which.as_deref(), limit).await?;
            ctx.out.list(
                &builds,
                &["build", "status", "commit", "branch", "begun", "release", "error"],
                |b| {
                    vec![
                        text(b, "id"),
                        text(b, "status"),
                        short(&text(b, "commit")),
                        text(b, "branch"),
                        ago(&b["started_at"], ctx.now),
                        short(&text(b, "release")),
                        error_of(b).lines().next().unwrap_or_default().to_owned(),
                    ]
                },
            );
            Ok(())
        }
        BuildCommand::Show { build } => {
            let build = show(&api, &build).await?;
            ctx.out.result(&build, || human(&build));
            Ok(())
        }
        BuildCommand::Log { build } if ctx.out.json => {
            let mut whole = String::new();
            read_log(&api, &build, false, |lines| whole.push_str(lines)).await?;
            ctx.out.result(&json!({ "build": build, "log": whole }), String::new);
            Ok(())
        }
        BuildCommand::Log { build } => read_log(&api, &build, false, print).await,
        BuildCommand::Watch { build } => {
            let id = match build {
                Some(id) => id,
                None => {
                    builds(ctx, &api, None, 1).await?.first().map(|b| text(b, "id")).ok_or_else(|| {
                        Failure::not_found("watch the newest build", "the fleet has no build yet")
                    })?
                }
            };
            watch(ctx, &api, &id).await
        }
        BuildCommand::Retry { build, no_watch } => {
            let what = format!("build {build} again");
            let path = format!("/builds/{}/retry", seg(&build));
            let again = api.call(&what, Method::POST, &path, None).await;
            let again = again.map_err(|e| e.not_found_next("copal build list"))?;
            begun(ctx, &api, &again, &build, no_watch).await
        }
    }
}

async fn builds(ctx: &Context, api: &Api, which: Option<&str>, limit: usize) -> Result<Vec<Value>> {
    let fleet = ctx.fleet(api, which).await?;
    api.some("list the builds", &format!("/fleets/{}/builds", seg(&fleet.slug)), "", limit).await
}

async fn show(api: &Api, id: &str) -> Result<Value> {
    let shown = api.get(&format!("show build {id}"), &format!("/builds/{}", seg(id))).await;
    shown.map_err(|e| e.not_found_next("copal build list"))
}

fn error_of(build: &Value) -> String {
    match &build["error"] {
        Value::Object(error) => error.values().filter_map(Value::as_str).collect::<Vec<_>>().join(": "),
        other => crate::output::scalar(other),
    }
}

fn human(build: &Value) -> String {
    pairs(&[
        ("build", text(build, "id")),
        ("status", text(build, "status")),
        ("commit", text(build, "commit")),
        ("branch", text(build, "branch")),
        ("begun", when(&build["started_at"])),
        ("ended", when(&build["finished_at"])),
        ("release", text(build, "release")),
        ("error", error_of(build)),
    ])
}

fn print(lines: &str) {
    // A closed pipe (`| head`) is no error.
    let _ = std::io::stdout().write_all(lines.as_bytes());
    let _ = std::io::stdout().flush();
}

/// Gives a log in whole lines as it comes, made harmless for a terminal.
async fn read_log(api: &Api, id: &str, follow: bool, mut each: impl FnMut(&str)) -> Result<()> {
    let what = format!("read the log of build {id}");
    let query = if follow { "?follow=true" } else { "" };
    let request = api.request(Method::GET, &format!("/builds/{}/log{query}", seg(id)));
    let response = api.send(&what, request).await.map_err(|e| e.not_found_next("copal build list"))?;
    let mut stream = response.bytes_stream();
    let mut pending = Vec::new();
    while let Some(chunk) = stream.next().await {
        pending.extend_from_slice(&chunk.map_err(|e| api.transport(&what, &e))?);
        // Whole lines only, so that no escape sequence or letter is cut in two; a line without end is cut.
        let end = pending.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let end = if end == 0 && pending.len() > 64 << 10 { pending.len() } else { end };
        let lines: Vec<u8> = pending.drain(..end).collect();
        each(&safe_lines(&String::from_utf8_lossy(&lines)));
    }
    each(&safe_lines(&String::from_utf8_lossy(&pending)));
    Ok(())
}

/// Follows a build to its end, through lost connections.
async fn watch(ctx: &Context, api: &Api, id: &str) -> Result<()> {
    let what = format!("follow build {id}");
    // The log is for people: programs get the build as one document, and read its log with `copal build log --json`.
    let silent = ctx.out.json || ctx.out.quiet;
    let each = |lines: &str| {
        if !silent {
            print(lines);
        }
    };
    if let Err(lost) = read_log(api, id, true, each).await {
        if lost.kind != Kind::Network {
            return Err(lost);
        }
        ctx.out.remark(format!("the log broke off ({}); the build goes on", lost.why));
    }
    let build = loop {
        let build = show(api, id).await?;
        if !matches!(text(&build, "status").as_str(), "queued" | "running") {
            break build;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    if text(&build, "status") == "succeeded" {
        ctx.out.result(&build, || human(&build));
        return Ok(());
    }
    if ctx.out.json {
        ctx.out.result(&build, String::new);
    }
    let why = Some(error_of(&build)).filter(|e| !e.is_empty()).unwrap_or_else(|| text(&build, "status"));
    Err(Failure::new(Kind::Failure, "build_failed", what, why)
        .next(format!("copal build log {id}; what is built again unchanged: copal build retry {id}")))
}

async fn begun(ctx: &Context, api: &Api, build: &Value, old: &str, no_watch: bool) -> Result<()> {
    let id = Some(text(build, "id")).filter(|id| !id.is_empty()).unwrap_or_else(|| old.to_owned());
    if no_watch {
        ctx.out.result(build, || format!("build {id} is {}", text(build, "status")));
        return Ok(());
    }
    ctx.out.remark(format!("build {id}"));
    watch(ctx, api, &id).await
}

/// `copal push`.
pub(super) async fn push(ctx: &Context, args: Push) -> Result<()> {
    let api = ctx.api()?;
    let fleet = ctx.fleet(&api, None).await?;
    let what = format!("push {} to fleet {}", args.folder.display(), fleet.slug);
    if !args.folder.is_dir() {
        return Err(Failure::usage(what, "it is not a folder"));
    }
    let file = tempfile::NamedTempFile::new().map_err(|e| Failure::local(&what, e))?;
    let packed = pack(&args.folder, std::io::BufWriter::new(file.as_file()))?;
    if packed.files == 0 {
        return Err(Failure::usage(what, "there is no file in it"));
    }
    let open = tokio::fs::File::open(file.path()).await.map_err(|e| Failure::local(&what, e))?;
    let length = open.metadata().await.map_err(|e| Failure::local(&what, e))?.len();
    ctx.out.remark(format!("{} files, {} packed", packed.files, bytes(length)));

    let mut query = Vec::new();
    if let Some(note) = &args.note {
        query.push(format!("note={}", seg(note)));
    }
    if args.draft {
        query.push("draft=true".to_owned());
    }
    if args.no_cache {
        query.push("nocache=true".to_owned());
    }
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    let path = format!("/fleets/{}/builds{query}", seg(&fleet.slug));
    let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::with_capacity(open, 64 << 10));
    let request = api
        .request(Method::POST, &path)
        .header(header::CONTENT_TYPE, "application/gzip")
        .header(header::CONTENT_LENGTH, length)
        .body(body);
    let build = api.json(&what, api.send(&what, request).await?).await?;
    begun(ctx, &api, &build, "", args.no_watch).await
}
