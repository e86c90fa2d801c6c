//! Terminals on devices, and what is kept of them.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    time::Duration,
};

use copal_protocol::{
    asciicast::{self, Event},
    documents::{MAX_GRANT_S, Role, TerminalMode, TerminalTarget},
    ids::SessionId,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    args::{SessionsCommand, Shell},
    context::{Context, Fleet, passphrase_of},
    failure::{Failure, Kind, Result},
    home::fleets::Chain,
    http::{Api, seg},
    lock,
    output::{ago, short, text, when},
    shell::{self, Asked, Ended, Terminal, grant::Operator},
};

/// The most bytes of a recording that are read here.
const MAX_RECORDING: usize = 256 << 20;
/// No pause of a replay is longer.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// What to open where.
struct Wish {
    /// The device, as a person named it.
    named: Option<String>,
    target: TerminalTarget,
    reason: String,
    grant: bool,
    max: Option<u64>,
    idle: Option<u64>,
}

pub(super) async fn shell(ctx: &Context, args: Shell) -> Result<()> {
    let what = format!("open a terminal on device {}", args.device);
    let target = match (&args.service, args.host) {
        (Some(name), _) => TerminalTarget::Service(name.parse().map_err(|e| Failure::usage(&what, e))?),
        (None, true) => TerminalTarget::Host,
        (None, false) => {
            return Err(Failure::usage(what, "neither a service nor --host was named")
                .next("copal shell DEVICE SERVICE --reason TEXT"));
        }
    };
    let reason = args.reason.or_else(|| ctx.globals.why.clone()).filter(|r| !r.trim().is_empty());
    let reason = reason.ok_or_else(|| {
        Failure::usage(&what, "it is not said why")
            .next("add --reason TEXT: it stands in the audit log and on the device")
    })?;
    let api = ctx.api()?;
    let device = ctx.device(&api, &args.device).await?;
    let named = Some(args.device.clone());
    let wish = Wish { named, target, reason, grant: args.grant, max: args.max, idle: args.idle };
    let terminal = open(ctx, &api, &device, wish, &what).await?;
    let Ended { code, message, exit_code } = terminal.show().await?;
    match (code.as_str(), exit_code) {
        ("ended", Some(exit)) => {
            let _ = std::io::stdout().flush();
            // The shell's own, as it would be without all that is between; 255 where it does not fit.
            std::process::exit(i32::try_from(exit).ok().filter(|n| (0..=255).contains(n)).unwrap_or(255))
        }
        ("ended" | "left", _) => {
            ctx.out.remark(if message.is_empty() { "the terminal is closed".to_owned() } else { message });
            Ok(())
        }
        _ => Err(shell::failure(&what, &Ended { code, message, exit_code })),
    }
}

/// Asks the server, and opens what it answers.
async fn open(ctx: &Context, api: &Api, device: &Value, wish: Wish, what: &str) -> Result<Terminal> {
    let slug = text(device, "fleet");
    let fleet = ctx.fleet(api, Some(&slug)).await?;
    // Keys are opened before anything is asked for: a passphrase takes its time, and the session waits for 30 s only.
    let operator = operator(ctx, api, &fleet, device, &wish, what).await?;
    let (cols, rows) = shell::window_size().unwrap_or((80, 24));
    let mut body = json!({ "reason": wish.reason, "cols": cols, "rows": rows });
    match &wish.target {
        TerminalTarget::Service(name) => body["service"] = json!(name),
        TerminalTarget::Host => body["host"] = json!(true),
        TerminalTarget::Recording(id) => body["recording"] = json!(id),
    }
    for (name, value) in [("max_s", wish.max), ("idle_s", wish.idle)] {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    let path = format!("/fleets/{}/devices/{}/terminal", seg(&slug), seg(&text(device, "device_id")));
    let session = api.call(what, Method::POST, &path, Some(&body)).await?;
    let id = text(&session, "id");
    let session_id: SessionId =
        id.parse().map_err(|e| Failure::new(Kind::Network, "answer_not_understood", what, e))?;
    if session["mode"] == "grant" && operator.is_none() {
        return Err(Failure::trust("grant_needed", what, "the server says that the fleet's root asks for a grant").next(
            "copal root show: level this machine's root with the server's, or work on the owner's machine; --grant signs one",
        ));
    }
    ctx.out.remark(format!(
        "session {id}: {}",
        if operator.is_some() { "end to end, recorded on the device" } else { "recorded" }
    ));
    let asked = Asked {
        what: what.to_owned(),
        path: format!("{path}/{}", seg(&id)),
        session: session_id,
        target: wish.target,
        operator,
    };
    Terminal::open(api, asked).await
}

/// Who grants it: by the root of this machine, never by the server's word. `None` where no grant is needed.
async fn operator(
    ctx: &Context,
    api: &Api,
    fleet: &Fleet,
    device: &Value,
    wish: &Wish,
    what: &str,
) -> Result<Option<Operator>> {
    let known = ctx.home.fleet_record(fleet.fleet_id)?;
    let chain: Option<Chain> = match &known {
        Some(_) => Some(ctx.chain(api, fleet).await?.1),
        None => None,
    };
    let mode = chain.as_ref().map(|chain| chain.newest.policy.terminal);
    let (Some(record), Some(chain)) = (known, chain) else {
        if wish.grant {
            ctx.record(api, fleet)?;
        }
        return Ok(None);
    };
    if mode != Some(TerminalMode::Grant) && !wish.grant {
        return Ok(None);
    }
    let threshold = chain.newest.roles.get(&Role::Operator).map_or(0, |role| role.threshold as usize);
    let listed = |key: &copal_protocol::keys::SigningKey| {
        chain.newest.roles.get(&Role::Operator).is_some_and(|role| role.keyids.contains(&key.public().id()))
    };
    let stored = ctx.home.load_keys(&record.keys, Some(Role::Operator), &mut |path| passphrase_of(path))?;
    let keys: Vec<_> = stored.into_iter().map(|k| k.file.key).filter(listed).take(threshold.max(1)).collect();
    if keys.len() < threshold.max(1) {
        let why = format!(
            "{} of the {} operator keys that must sign are on this machine",
            keys.len(),
            threshold.max(1)
        );
        return Err(Failure::trust("operator_key_missing", what, why)
            .next("copal keys add operator; copal root add-key operator 'PUBLIC KEY AS SHOWN'"));
    }
    let cards = ctx.home.introductions(record.fleet_id)?;
    let claim = super::lock::claim_of(device).ok_or("the server shows no usable id of it".to_owned());
    let vouched = claim.and_then(|claim| lock::vouched_key(&cards, &claim)).map_err(|why| {
        Failure::trust("device_not_proven", what, why)
            .next("a grant goes to a device whose copal.json was made on this machine: only then its key is known here")
    })?;
    let device_id =
        text(device, "device_id").parse().map_err(|e| Failure::trust("E_DEVICE_MISMATCH", what, e))?;
    // The server said which device that name means.
    let called = vouched.name.clone().unwrap_or_else(|| format!("card {}", vouched.card));
    let whom = format!("device {device_id}, which this machine calls {called}");
    match &wish.named {
        Some(word) if !vouched.is_meant_by(word, device_id) => {
            ctx.confirm(&format!(
                "You named {word:?}, and the server says that it is {whom}. Grant it there?"
            ))?;
        }
        _ => ctx.out.remark(format!("granted to {whom}: {}", wish.target)),
    }
    let name = ctx.home.config()?.current.unwrap_or_default();
    let who = std::env::var("USER").ok().filter(|u| !u.is_empty()).unwrap_or_else(|| "operator".to_owned());
    Ok(Some(Operator {
        keys,
        name: format!("{who} by {name}"),
        reason: wish.reason.clone(),
        max_s: wish.max.and_then(|s| u32::try_from(s).ok()).unwrap_or(MAX_GRANT_S),
        fleet: record.fleet_id,
        device: device_id,
        device_key: vouched.key,
        now: ctx.now,
    }))
}

pub(super) async fn sessions(ctx: &Context, command: SessionsCommand) -> Result<()> {
    let api = ctx.api()?;
    match command {
        SessionsCommand::List { device, live, limit } => {
            list(ctx, &api, device.as_deref(), live, limit).await
        }
        SessionsCommand::Show { session } => {
            let (_, _, found) = find(ctx, &api, "show", &session).await?;
            ctx.out.result(&found, || about(&found));
            Ok(())
        }
        SessionsCommand::Kill { session: None, device, server, .. } => {
            kill_all(ctx, &api, device.as_deref(), server).await
        }
        SessionsCommand::Off { server } => hold(ctx, &api, server, true).await,
        SessionsCommand::On { server } => hold(ctx, &api, server, false).await,
        SessionsCommand::Kill { session: Some(session), .. } => {
            let (what, path, _) = find(ctx, &api, "end", &session).await?;
            let ended = api.call(&what, Method::DELETE, &path, None).await?;
            if ended["ended_at"].is_null() {
                return Err(Failure::new(
                    Kind::Timeout,
                    "not_ended",
                    what,
                    "it was told to end and has not yet",
                )
                .next(format!("copal sessions show {session}")));
            }
            ctx.out.result(&ended, || format!("session {session} is ended ({})", text(&ended, "code")));
            Ok(())
        }
        SessionsCommand::Download { session, out } => {
            let bytes = recording(ctx, &api, &session).await?;
            let out = out.unwrap_or_else(|| PathBuf::from(format!("{session}.cast")));
            let what = || format!("write {}", out.display());
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&out)
                .map_err(|e| Failure::local(what(), e))?;
            file.write_all(&bytes).map_err(|e| Failure::local(what(), e))?;
            let told = json!({ "session": session, "file": out, "bytes": bytes.len() });
            ctx.out.result(&told, || format!("{} bytes in {}", bytes.len(), out.display()));
            Ok(())
        }
        SessionsCommand::Replay { session, speed, fast } => {
            let bytes = recording(ctx, &api, &session).await?;
            let text = String::from_utf8(bytes)
                .map_err(|e| Failure::local(format!("replay session {session}"), e))?;
            replay(&text, speed, fast || !std::io::stdout().is_terminal())
                .await
                .map_err(|e| Failure::local(format!("replay session {session}"), e))
        }
    }
}

/// Ends all there are: of a device, of the fleet, or of the server.
async fn kill_all(ctx: &Context, api: &Api, device: Option<&str>, server: bool) -> Result<()> {
    let (path, of) = match device {
        _ if server => ("/sessions".to_owned(), "the server".to_owned()),
        Some(word) => {
            let device = ctx.device(api, word).await?;
            let (fleet, id) = (text(&device, "fleet"), text(&device, "device_id"));
            (format!("/fleets/{}/sessions?device={}", seg(&fleet), seg(&id)), format!("device {word}"))
        }
        None => {
            let slug = ctx.fleet(api, None).await?.slug;
            (format!("/fleets/{}/sessions", seg(&slug)), format!("fleet {slug}"))
        }
    };
    let what = format!("end all terminals of {of}");
    let killed = api.call(&what, Method::DELETE, &path, None).await?;
    let count = |field: &str| killed[field].as_array().map_or(0, Vec::len);
    if count("left") > 0 {
        let why = format!("{} were told to end and have not yet; {} ended", count("left"), count("ended"));
        return Err(Failure::new(Kind::Timeout, "not_ended", what, why).next("copal sessions list --live"));
    }
    ctx.out.result(&killed, || match count("ended") {
        0 => format!("no terminal is open on {of}"),
        1 => format!("1 terminal of {of} is ended"),
        n => format!("{n} terminals of {of} are ended"),
    });
    Ok(())
}

/// Holds new terminals back, or no longer.
async fn hold(ctx: &Context, api: &Api, server: bool, stopped: bool) -> Result<()> {
    let (path, of) = if server {
        ("/terminals".to_owned(), "the server".to_owned())
    } else {
        let slug = ctx.fleet(api, None).await?.slug;
        (format!("/fleets/{}/terminals", seg(&slug)), format!("fleet {slug}"))
    };
    let what = format!("{} terminals on {of}", if stopped { "hold back" } else { "no longer hold back" });
    let now = api.call(&what, Method::PUT, &path, Some(&json!({ "stopped": stopped }))).await?;
    ctx.out.result(&now, || {
        let by = now["by"].as_array().into_iter().flatten();
        let lines = by.map(|b| {
            let why = Some(text(b, "why")).filter(|why| !why.is_empty());
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            format!(
                "no new terminal opens on {of}: stopped for the {} by {}{why}",
                text(b, "on"),
                text(b, "who")
            )
        });
        let lines = lines.collect::<Vec<_>>().join("\n");
        if lines.is_empty() { format!("terminals on {of} are up to the root and the device") } else { lines }
    });
    if stopped {
        ctx.out.remark("those that are open go on: copal sessions kill --all");
    }
    Ok(())
}

async fn list(ctx: &Context, api: &Api, device: Option<&str>, live: bool, limit: usize) -> Result<()> {
    let (slug, query) = match device {
        Some(word) => {
            let device = ctx.device(api, word).await?;
            (text(&device, "fleet"), format!("&device={}", seg(&text(&device, "device_id"))))
        }
        None => (ctx.fleet(api, None).await?.slug, String::new()),
    };
    let query = if live { format!("{query}&live=true") } else { query };
    let found =
        api.some("list the terminals", &format!("/fleets/{}/sessions", seg(&slug)), &query, limit).await?;
    ctx.out.list(&found, &["asked", "session", "device", "what", "by", "state", "ended", "why"], |s| {
        vec![
            when(&s["created_at"]),
            text(s, "id"),
            short(&text(s, "device_id")),
            target(s),
            text(s, "who"),
            [text(s, "state"), text(s, "code")]
                .into_iter()
                .filter(|t| !t.is_empty())
                .collect::<Vec<_>>()
                .join(": "),
            ago(&s["ended_at"], ctx.now),
            text(s, "reason"),
        ]
    });
    Ok(())
}

fn target(session: &Value) -> String {
    match serde_json::from_value::<TerminalTarget>(session["target"].clone()) {
        Ok(target) => target.to_string(),
        Err(_) => session["target"].to_string(),
    }
}

fn about(s: &Value) -> String {
    let mut lines = vec![
        format!(
            "{} on device {}, by {}: {}",
            target(s),
            text(s, "device_id"),
            text(s, "who"),
            text(s, "reason")
        ),
        format!(
            "asked {}, opened {}, ended {}",
            when(&s["created_at"]),
            when(&s["opened_at"]),
            when(&s["ended_at"])
        ),
        format!("{} {} {}", text(s, "state"), text(s, "code"), text(s, "message")).trim_end().to_owned(),
        format!("{} bytes typed, {} shown", s["bytes_in"], s["bytes_out"]),
    ];
    if !s["exit_code"].is_null() {
        lines.push(format!("the shell ended with {}", s["exit_code"]));
    }
    match (s["mode"].as_str(), s["recording_bytes"].as_i64()) {
        (Some("grant"), _) => lines.push("recorded on the device".to_owned()),
        (_, Some(bytes)) => {
            lines.push(format!("recorded: {bytes} bytes, SHA-256 {}", text(s, "recording_sha256")));
        }
        _ => lines.push("no recording is kept".to_owned()),
    }
    lines.join("\n")
}

/// What is said of failures, the path of a session, and the session.
async fn find(ctx: &Context, api: &Api, act: &str, session: &str) -> Result<(String, String, Value)> {
    let what = format!("{act} session {session}");
    let fleet = ctx.fleet(api, None).await?;
    let path = format!("/fleets/{}/sessions/{}", seg(&fleet.slug), seg(session));
    let found = api.get(&what, &path).await.map_err(|e| e.not_found_next("copal sessions list"))?;
    Ok((what, path, found))
}

/// A recording's bytes: from the server, or from the device where only that has it.
async fn recording(ctx: &Context, api: &Api, session: &str) -> Result<Vec<u8>> {
    let (what, path, found) = find(ctx, api, "fetch the recording of", session).await?;
    if found["mode"] != "grant" {
        let request = api.request(Method::GET, &format!("{path}/recording"));
        let response = api.send(&what, request).await?;
        let bytes = api.read(&what, response, MAX_RECORDING).await?;
        let sha256 = copal_protocol::ids::Sha256Hex::of(&bytes).to_string();
        if found["recording_sha256"].as_str().is_some_and(|known| known != sha256) {
            let why =
                format!("its SHA-256 is {sha256}, the session's is {}", text(&found, "recording_sha256"));
            return Err(Failure::trust("recording_differs", what, why));
        }
        return Ok(bytes);
    }
    let of = session.parse().map_err(|e| Failure::usage(&what, e))?;
    let device = ctx.device(api, &text(&found, "device_id")).await?;
    let reason = ctx.globals.why.clone().unwrap_or_else(|| format!("the recording of session {session}"));
    let target = TerminalTarget::Recording(of);
    let wish = Wish { named: None, target, reason, grant: true, max: None, idle: None };
    Box::pin(open(ctx, api, &device, wish, &what)).await?.read_all(MAX_RECORDING).await
}

/// Plays what the terminal said, as fast as it was said, or at once.
async fn replay(recording: &str, speed: u32, at_once: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let mut shown = Duration::ZERO;
    for (at, event) in recording.lines().skip(1).filter_map(asciicast::read) {
        let Event::Output(bytes) = event else { continue };
        if !at_once {
            tokio::time::sleep((at.saturating_sub(shown) / speed).min(MAX_PAUSE)).await;
            shown = at;
        }
        out.write_all(&bytes)?;
        if !at_once {
            out.flush()?;
        }
    }
    out.flush()
}
