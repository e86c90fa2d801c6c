//! Fleets: made on the server, ruled by a root made and signed here.

use copal_protocol::{
    documents::{AllowPolicy, CloudAddress, Policy, Role},
    ids::{AppId, FleetId},
    keys::{PublicKey, SigningKey},
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{lock, login::host_name};
use crate::{
    args::{FleetCommand, FleetCreate, PolicyArgs},
    context::{Context, passphrase_of, upload_root},
    failure::{Failure, Kind, Result},
    home::fleets::{Chain, FleetRecord},
    http::{Api, seg},
    output::{pairs, scalar, short, text, when},
    roots::{self, First, Listed},
};

pub(super) async fn run(ctx: &Context, command: FleetCommand) -> Result<()> {
    match command {
        FleetCommand::Create(args) => Box::pin(create(ctx, *args)).await,
        FleetCommand::List => {
            let fleets = ctx.api()?.all("list the fleets", "/fleets", "").await?;
            let columns =
                ["fleet", "type", "arch", "mode", "root", "devices", "online", "on target", "failed"];
            ctx.out.list(&fleets, &columns, |f| {
                let devices = |field: &str| scalar(&f["devices"][field]);
                vec![
                    text(f, "slug"),
                    text(f, "device_type"),
                    text(f, "arch"),
                    text(f, "release_mode"),
                    text(f, "root_version"),
                    devices("total"),
                    devices("online"),
                    devices("on_target"),
                    devices("failed"),
                ]
            });
            Ok(())
        }
        FleetCommand::Show { which } => {
            let fleet = ctx.fleet(&ctx.api()?, which.as_deref()).await?;
            ctx.out.result(&fleet.value, || human(&fleet.value));
            Ok(())
        }
        FleetCommand::Delete { which, force } => delete(ctx, &which, force).await,
        FleetCommand::CheckEvery { which, every } => check_every(ctx, &which, every.0).await,
        FleetCommand::Lock(args) => Box::pin(lock::lock(ctx, args)).await,
        FleetCommand::Unlock { which } => Box::pin(lock::unlock(ctx, which.as_deref())).await,
    }
}

async fn check_every(ctx: &Context, slug: &str, every_s: Option<u32>) -> Result<()> {
    let api = ctx.api()?;
    let fleet = ctx.fleet(&api, Some(slug)).await?;
    let what = format!("set how often devices of fleet {} check themselves", fleet.slug);
    let path = format!("/fleets/{}/check-every", seg(&fleet.slug));
    let answer = api.call(&what, Method::PUT, &path, Some(&json!({ "check_every_s": every_s }))).await?;
    ctx.out.result(&answer, || match answer["check_every_s"].as_u64() {
        Some(seconds) => format!("devices of {} check themselves every {seconds} s or so", fleet.slug),
        None => format!("devices of {} check themselves as often as each one says", fleet.slug),
    });
    Ok(())
}

async fn delete(ctx: &Context, slug: &str, force: bool) -> Result<()> {
    let api = ctx.api()?;
    let fleet = ctx.fleet(&api, Some(slug)).await?;
    let slug = &fleet.slug;
    ctx.confirm(&format!(
        "Fleet {slug}, its releases and its {} device(s) will be gone from the server for good. Go on?",
        scalar(&fleet.value["devices"]["total"])
    ))?;
    let force = if force { "?force=true" } else { "" };
    let path = format!("/fleets/{}{force}", seg(slug));
    api.call(&format!("delete fleet {slug}"), Method::DELETE, &path, None).await.map_err(|failure| {
        if failure.code == "fleet_has_devices" {
            return failure.next(format!("copal fleet delete {slug} --force"));
        }
        failure
    })?;
    let kept = ctx.home.retire_fleet(fleet.fleet_id)?;
    let done = json!({ "fleet": slug, "fleet_id": fleet.fleet_id, "deleted": true, "roots_kept_in": kept });
    ctx.out.result(&done, || format!("deleted {slug}"));
    if let Some(kept) = kept {
        ctx.out.remark(format!("its roots are kept in {}; your keys are as they were", kept.display()));
    }
    Ok(())
}

fn human(fleet: &Value) -> String {
    let devices = &fleet["devices"];
    let counts = ["total", "online", "on_target", "failed"]
        .map(|field| format!("{} {}", scalar(&devices[field]), field.replace('_', " ")));
    pairs(&[
        ("fleet", text(fleet, "slug")),
        ("id", text(fleet, "fleet_id")),
        ("app", text(fleet, "app_id")),
        ("devices", counts.join(", ")),
        ("type", format!("{}, {}", text(fleet, "device_type"), text(fleet, "arch"))),
        ("release mode", text(fleet, "release_mode")),
        ("root", format!("{} {}", text(fleet, "root_version"), text(fleet, "root_sha256"))),
        ("target", text(fleet, "target_release")),
        ("pinned to", text(fleet, "pinned_release")),
        ("push to", text(fleet, "git_url")),
        ("made", when(&fleet["created_at"])),
    ])
}

/// What was said about policy, on top of `base`.
pub(super) fn policy(args: &PolicyArgs, base: Policy, reset: bool) -> Result<Policy> {
    let mut policy = match &args.policy {
        None => base,
        Some(file) => {
            let what = format!("read the policy {}", file.display());
            let bytes =
                crate::home::read(file)?.ok_or_else(|| Failure::not_found(&what, "there is no such file"))?;
            copal_protocol::json::from_slice(&bytes, 8).map_err(|e| Failure::usage(what, e))?
        }
    };
    if reset {
        policy.allow = AllowPolicy::default();
    }
    if let Some(mode) = args.release_mode {
        policy.release_mode = mode.into();
    }
    if let Some(mode) = args.env_mode {
        policy.env_mode = mode.into();
    }
    if let Some(mode) = args.terminal {
        policy.terminal = mode.into();
    }
    let allow = &mut policy.allow;
    allow.privileged |= args.allow_privileged;
    allow.host_network |= args.allow_host_network;
    allow.host_pid |= args.allow_host_pid;
    allow.host_ipc |= args.allow_host_ipc;
    allow.volume_driver_opts |= args.allow_volume_driver_opts;
    allow.offline |= args.allow_offline;
    // Specs carry capabilities without the prefix; so does the rule they are held against.
    let caps = args.allow_cap.iter().map(|cap| cap.to_uppercase().trim_start_matches("CAP_").to_owned());
    allow.caps.extend(caps);
    for (words, set) in [
        (&args.allow_device, &mut allow.devices),
        (&args.allow_bind, &mut allow.binds),
        (&args.allow_security_opt, &mut allow.security_opt),
        (&args.allow_runtime, &mut allow.runtimes),
        (&args.allow_sysctl, &mut allow.sysctls),
        (&args.allow_cgroup_rule, &mut allow.cgroup_rules),
    ] {
        set.extend(words.iter().cloned());
    }
    Ok(policy)
}

/// A public key out of an answer.
pub(super) fn server_key(value: &Value, field: &str) -> Result<PublicKey> {
    text(value, field).parse().map_err(|e| {
        let why = format!("its {} is not usable: {e}", field.replace('_', " "));
        Failure::trust("server_key_invalid", "take the server's keys into the root", why)
    })
}

async fn create(ctx: &Context, args: FleetCreate) -> Result<()> {
    let what = format!("create fleet {}", args.slug);
    let api = ctx.api()?;
    let own = ctx.home.load_keys(&args.keys, None, &mut passphrase_of)?;
    let info = ctx.home.set_info(&args.keys)?;
    let of = |role| own.iter().filter(move |k| k.file.role == role);
    if of(Role::Root).count() < info.root_threshold as usize || of(Role::Release).next().is_none() {
        return Err(Failure::local(what, format!("the key set {} lacks a root or release key", args.keys))
            .next("copal keys init"));
    }
    let policy = policy(&args.policy, Policy::default(), false)?;

    let body = json!({ "slug": args.slug, "device_type": args.device_type, "arch": args.arch });
    let fleet = match api.call(&what, Method::POST, "/fleets", Some(&body)).await {
        Ok(fleet) => fleet,
        Err(failure) if failure.kind == Kind::Refused => begun(ctx, &api, &args, failure).await?,
        Err(failure) => return Err(failure),
    };
    let (builder, assign) = (server_key(&fleet, "builder_key")?, server_key(&fleet, "assign_key")?);
    confirm_keys(ctx, &args, &builder, &assign)?;

    let id = |field: &str| text(&fleet, field);
    let unreadable =
        |e: copal_protocol::ids::ParseIdError| Failure::new(Kind::Network, "answer_not_understood", &what, e);
    let fleet_id: FleetId = id("fleet_id").parse().map_err(unreadable)?;
    let app_id: AppId = id("app_id").parse().map_err(unreadable)?;
    let mut keys: Vec<Listed> = own
        .iter()
        .filter(|k| !matches!(k.file.role, Role::Builder | Role::Assign))
        .map(|k| Listed { role: k.file.role, public: k.file.key.public(), label: k.file.label.clone() })
        .collect();
    keys.push(Listed { role: Role::Builder, public: builder, label: api.address() });
    keys.push(Listed { role: Role::Assign, public: assign, label: api.address() });
    let first = First {
        fleet_id,
        keys,
        root_threshold: info.root_threshold,
        release_threshold: info.release_threshold,
        policy,
        // Devices take the address from copal.json until the owner says another: the one used here may be an inner one.
        cloud: CloudAddress::default(),
    };
    let record = FleetRecord {
        slug: args.slug.clone(),
        fleet_id,
        app_id,
        server: api.address(),
        keys: args.keys.clone(),
    };
    let chain = match ctx.home.chain(fleet_id)? {
        // A first attempt got this far, and only the upload failed.
        Some(chain) => chain,
        None => {
            let root = roots::first(first, ctx.now, args.days);
            let privates: Vec<&SigningKey> = own.iter().map(|k| &k.file.key).collect();
            let envelope = roots::sign(&root, None, &privates).map_err(|e| Failure::local(&what, e))?;
            let chain = Chain::begin(envelope, fleet_id).map_err(|e| Failure::verify(&what, &e))?;
            ctx.home.save_fleet_record(&record)?;
            ctx.home.save_root(fleet_id, 1, chain.last())?;
            chain
        }
    };
    upload_root(&api, &args.slug, chain.last()).await?;
    let shown = api.get(&what, &format!("/fleets/{}", seg(&args.slug))).await.unwrap_or(fleet);
    let mut value = shown.clone();
    value["root_sha256"] = json!(chain.newest.sha256());
    ctx.out.result(&value, || human(&value));
    ctx.out.remark(format!(
        "next: copal device config {0}; git remote add copal {1}",
        args.slug,
        text(&shown, "git_url")
    ));
    Ok(())
}

/// A fleet that exists may be one whose creation stopped before its root was uploaded: then it goes on from there.
async fn begun(ctx: &Context, api: &Api, args: &FleetCreate, refused: Failure) -> Result<Value> {
    let Ok(fleet) = api.get("show the fleet", &format!("/fleets/{}", seg(&args.slug))).await else {
        return Err(refused);
    };
    let fits = text(&fleet, "device_type") == args.device_type && text(&fleet, "arch") == args.arch;
    if fleet["root_version"].as_u64() != Some(0) || !fits {
        return Err(refused);
    }
    ctx.out.remark(format!("fleet {} was begun before and has no root yet; going on", args.slug));
    Ok(fleet)
}

fn confirm_keys(ctx: &Context, args: &FleetCreate, builder: &PublicKey, assign: &PublicKey) -> Result<()> {
    let what = format!("create fleet {}", args.slug);
    let shown = [builder.id().to_string(), assign.id().to_string()];
    if !args.expect_key.is_empty() {
        for (role, id) in ["builder", "assign"].iter().zip(&shown) {
            if !args.expect_key.contains(id) {
                return Err(Failure::trust(
                    "server_key_unexpected",
                    what,
                    format!("the server's {role} key is {id}"),
                )
                .next(
                    "if the server's keys were replaced on purpose, expect the new ones; else do not go on",
                ));
            }
        }
        return Ok(());
    }
    ctx.out.remark(format!(
        "the server's builder key  {}\nthe server's assign key   {}\nCompare with what the server printed when it started, \
         or what `copal-cloud keys` prints on its machine.\nThe root will let the first build releases and the second say which of them a device runs.",
        shown[0], shown[1]
    ));
    ctx.confirm("Are these the keys of your server?")
}

/// A label for a key made on this machine.
pub(super) fn own_label() -> String {
    format!("{}@{}", std::env::var("USER").unwrap_or_else(|_| "owner".to_owned()), host_name())
}

/// A keyid shortened for a table.
pub(super) fn short_id(id: &impl std::fmt::Display) -> String {
    short(&id.to_string())
}
