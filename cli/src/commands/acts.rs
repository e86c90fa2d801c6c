//! Acts of one device: asked, and waited for until they ended. Of many: [`rounds`](super::rounds).

use std::time::Duration;

use copal_protocol::{diagnosis::Diagnosis, network as proto};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    args::{ActCommand, How},
    context::Context,
    failure::{Failure, Kind, Result},
    http::{Api, seg},
    output::{ago, pairs, short, text, when},
};

/// How long the server holds a request for a command's end.
const HOLD_S: u64 = 25;
/// How long a stored command is watched before it is left to wait for its device.
const STORED: Duration = Duration::from_secs(5);

pub(super) async fn run(ctx: &Context, api: &Api, command: ActCommand) -> Result<()> {
    let service = |of: &crate::args::OneService| json!({ "service": of.service });
    let (device, verb, args, how) = match command {
        ActCommand::Restart { of, how } => (of.device.clone(), "restart_service", service(&of), how),
        ActCommand::Stop { of, how } => (of.device.clone(), "stop_service", service(&of), how),
        ActCommand::Start { of, how } => (of.device.clone(), "start_service", service(&of), how),
        ActCommand::Purge { device, volume, how } => (device, "purge_data", present("volume", volume), how),
        ActCommand::Reboot { device, how } => (device, "reboot", json!({}), how),
        ActCommand::Check { device, how } => (device, "check_update", json!({}), how),
        ActCommand::Pause { device, time, how } => (device, "pause_updates", present("for_s", time), how),
        ActCommand::Resume { device, how } => (device, "resume_updates", json!({}), how),
        ActCommand::Blink { device, time, how } => (device, "blink", json!({ "for_s": time }), how),
        ActCommand::Diagnose { device, checks, how } => {
            let args = if checks.is_empty() { json!({}) } else { json!({ "names": checks }) };
            (device, "probes", args, how)
        }
        ActCommand::Network { device, proxy, ntp, how } => {
            let args = network(proxy, ntp)?;
            (device, if args == json!({}) { "network" } else { "set_network" }, args, how)
        }
        ActCommand::SupportBundle { device, out, force } => {
            return super::bundles::fetch(ctx, api, &device, &out, force).await;
        }
        ActCommand::Health { device } => return super::devices::health(ctx, api, &device).await,
        ActCommand::Commands { device, cancel: Some(id), .. } => return cancel(ctx, api, &device, &id).await,
        ActCommand::Commands { device, cancel: None, limit } => return list(ctx, api, &device, limit).await,
    };
    if let Some(filter) = &how.filter {
        let wish = super::rounds::Wish { fleet: &device, filter, verb, args, how: &how };
        return Box::pin(super::rounds::run(ctx, api, wish)).await;
    }
    let device = ctx.device(api, &device).await?;
    let name = text(&device, "name");
    if verb == "purge_data" {
        let what =
            args["volume"].as_str().map_or("All data of the app".to_owned(), |v| format!("Volume {v}"));
        ctx.confirm(&format!("{what} on device {name} will be gone for good. Go on?"))?;
    }
    let asked = Asked { path: path(&device), name, verb };
    let made = asked.ask(api, &args, &how).await?;
    let came = if how.no_wait { made } else { asked.wait(ctx, api, made, &how).await? };
    asked.show(ctx, &came)
}

/// What is to be set. A password comes by standard input, never by the command line, which others on this machine can read.
fn network(proxy: Option<String>, ntp: Option<Vec<String>>) -> Result<Value> {
    let mut args = json!({});
    if let Some(mut proxy) = proxy {
        if proxy == "-" {
            proxy.clone_from(&*crate::context::read_secret("proxy's URL")?);
        } else if !proto::secrets_of(&proxy).is_empty() {
            return Err(Failure::usage(
                "set the proxy",
                "a user or password on the command line is seen by everybody on this machine",
            )
            .next("--proxy - and the URL on standard input"));
        }
        proto::check_proxy(&proxy).map_err(|why| Failure::usage("set the proxy", why))?;
        args["proxy"] = json!(proxy);
    }
    if let Some(servers) = ntp {
        let servers = if servers == ["default"] { Vec::new() } else { servers };
        proto::check_servers(&servers).map_err(|why| Failure::usage("set the time servers", why))?;
        args["ntp"] = json!(servers);
    }
    Ok(args)
}

fn present(name: &str, value: Option<impl Into<Value>>) -> Value {
    value.map_or_else(|| json!({}), |value| json!({ name: value.into() }))
}

fn path(device: &Value) -> String {
    format!("/fleets/{}/devices/{}/commands", seg(&text(device, "fleet")), seg(&text(device, "device_id")))
}

/// Something asked of a device.
struct Asked {
    path: String,
    name: String,
    verb: &'static str,
}

impl Asked {
    fn what(&self) -> String {
        format!("{} on device {}", self.verb, self.name)
    }

    async fn ask(&self, api: &Api, args: &Value, how: &How) -> Result<Value> {
        let mut body = json!({ "verb": self.verb, "args": args });
        if let Some(ttl) = how.ttl {
            body["delivery"] = json!("store");
            body["ttl_s"] = json!(ttl);
        }
        api.call(&self.what(), Method::POST, &self.path, Some(&body)).await
    }

    /// Waits for the end. A stored command whose device is away is left to wait by itself.
    async fn wait(&self, ctx: &Context, api: &Api, made: Value, how: &How) -> Result<Value> {
        let (began, limit) = (Instant::now(), Duration::from_secs(how.timeout));
        let mut command = made;
        let mut state = text(&command, "state");
        while command["ended"] != true {
            let passed = began.elapsed();
            if how.ttl.is_some() && state == "queued" && passed >= STORED {
                return Ok(command);
            }
            if passed >= limit {
                let why = format!("it is {state} after {} s, and may still come to its end", how.timeout);
                return Err(Failure::new(Kind::Timeout, "not_ended", self.what(), why)
                    .next(format!("copal device commands {}", self.name)));
            }
            let left = (limit - passed).as_secs().clamp(1, HOLD_S);
            let hold = if state == "queued" { left.min(STORED.as_secs()) } else { left };
            let path = format!("{}/{}?wait={hold}", self.path, seg(&text(&command, "id")));
            command = api.get(&self.what(), &path).await?;
            let now = text(&command, "state");
            if now != state && command["ended"] != true {
                ctx.out.remark(format!("{now} …"));
            }
            state = now;
        }
        Ok(command)
    }

    fn show(&self, ctx: &Context, command: &Value) -> Result<()> {
        let state = text(command, "state");
        if let Some(kind) = failed(&state) {
            return Err(self.failure(kind, &state, command));
        }
        if self.verb == "probes" && state == "done" {
            return self.found(ctx, command);
        }
        if self.verb == "network" && state == "done" {
            let set = &command["result"];
            ctx.out.result(set, || shown_network(set));
            return Ok(());
        }
        ctx.out.result(command, || {
            let said = Some(text(command, "message")).filter(|said| !said.is_empty());
            let said = said.map_or_else(String::new, |said| format!(": {said}"));
            format!("{}: {state} ({}){said}", self.what(), short(&text(command, "id")))
        });
        if command["ended"] != true {
            ctx.out.remark(format!("see what comes of it: copal device commands {}", self.name));
        }
        Ok(())
    }

    fn failure(&self, kind: Kind, state: &str, command: &Value) -> Failure {
        let said = [text(command, "code"), state.to_owned()].into_iter().find(|code| !code.is_empty());
        let code = said.unwrap_or_default();
        let words = text(command, "message");
        let why = if words.is_empty() { format!("it ended as {state}") } else { words };
        let failure = Failure::new(kind, &code, self.what(), why);
        match (state, code.as_str()) {
            ("unreachable", _) => failure.next("add --ttl 1d to let it wait for the device"),
            (_, "not_supported") => failure.next("the agent there is too old for this: copal os deploy"),
            (_, "reverted") => failure.next("see that the device can reach what was set, then set it again"),
            (_, "policy_local") => failure.next("the device's own /etc/copal/policy.toml forbids it"),
            _ => failure.next(format!("copal device show {}", self.name)),
        }
    }

    /// Shows what health checks found. One that failed is a finding, no failure of this command.
    fn found(&self, ctx: &Context, command: &Value) -> Result<()> {
        let result = &command["result"];
        if ctx.out.json {
            ctx.out.result(result, String::new);
            return Ok(());
        }
        let diagnosis: Diagnosis =
            serde_json::from_value(result.clone()).ok().filter(Diagnosis::is_sound).ok_or_else(|| {
                Failure::new(
                    Kind::Failure,
                    "answer_not_understood",
                    self.what(),
                    "the device answered something this version cannot read",
                )
                .next("use a newer copal, or see what it said with --json")
            })?;
        ctx.out.result(result, || diagnosis.to_text());
        Ok(())
    }
}

/// What is set on a device.
fn shown_network(set: &Value) -> String {
    let or = |field: &str, otherwise: &str| {
        let said = text(set, field);
        if said.is_empty() { otherwise.to_owned() } else { said }
    };
    let servers: Vec<&str> = set["ntp"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let servers = if servers.is_empty() { "the system's own".to_owned() } else { servers.join(", ") };
    pairs(&[
        ("proxy", or("proxy", "none set here")),
        ("time servers", servers),
        ("set by", or("ntp_service", "no time service that can be set")),
        ("last change", text(set, "last")),
    ])
}

/// The exit of a state in which nothing was done, or not well; `None` where all is well so far.
fn failed(state: &str) -> Option<Kind> {
    match state {
        "failed" | "rejected" | "unknown" => Some(Kind::Failure),
        "expired" | "unreachable" => Some(Kind::Timeout),
        _ => None,
    }
}

/// Takes back what was not sent yet.
async fn cancel(ctx: &Context, api: &Api, device: &str, id: &str) -> Result<()> {
    /// As many as the server keeps of acts and of questions.
    const KEPT: usize = 400;
    let device = ctx.device(api, device).await?;
    let what = format!("cancel command {id} of device {}", text(&device, "name"));
    let next = || format!("copal device commands {}", text(&device, "name"));
    let known = api.some(&what, &path(&device), "", KEPT).await?;
    let mut meant = known.iter().map(|command| text(command, "id")).filter(|known| known.starts_with(id));
    let whole = match (meant.next(), meant.next()) {
        (Some(one), None) => one,
        (None, _) => return Err(Failure::not_found(&what, "the device has no such command").next(next())),
        (Some(_), Some(_)) => {
            return Err(Failure::usage(&what, "several of its commands begin so").next(next()));
        }
    };
    let ended =
        api.call(&what, Method::POST, &format!("{}/{}/cancel", path(&device), seg(&whole)), None).await?;
    let (state, code) = (text(&ended, "state"), text(&ended, "code"));
    if code != "cancelled" {
        let why = format!("it has ended already: {state}");
        return Err(Failure::new(Kind::Refused, "command_ended", what, why).next(next()));
    }
    ctx.out.result(&ended, || format!("{} is taken back ({})", text(&ended, "verb"), short(&whole)));
    Ok(())
}

async fn list(ctx: &Context, api: &Api, device: &str, limit: usize) -> Result<()> {
    let device = ctx.device(api, device).await?;
    let commands = api.some("list the commands", &path(&device), "", limit).await?;
    ctx.out.list(&commands, &["asked", "id", "what", "by", "state", "ended", "why"], |c| {
        let args = c["args"].as_object().into_iter().flatten();
        let args: Vec<String> = args.map(|(_, value)| value.to_string().replace('"', "")).collect();
        let code = text(c, "code");
        let message = text(c, "message").replace('\n', " ");
        vec![
            when(&c["created_at"]),
            short(&text(c, "id")),
            format!("{} {}", text(c, "verb"), args.join(" ")).trim_end().to_owned(),
            text(c, "asked_by"),
            text(c, "state"),
            ago(&c["ended_at"], ctx.now),
            [code, message].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join(": "),
        ]
    });
    Ok(())
}
