//! `fleet lock`: a root that takes from the server the power to run code of its own, and the devices' proof of it.

use std::time::Duration;

use copal_protocol::{
    documents::{Document as _, EnvMode, LockState, Policy, ReleaseMode, Report, Root},
    verify::{self, Verified},
};
use serde_json::{Value, json};

use super::roots::apply;
use crate::{
    args::LockArgs,
    context::{Context, Fleet},
    failure::{Failure, Kind, Result},
    home::fleets::FleetRecord,
    http::{Api, seg},
    lock::{Claim, Line, Standing, Wanted, judge},
    output::{short, table, text},
    roots::Change,
};

/// Between two looks at the devices.
const PAUSE: Duration = Duration::from_secs(2);

pub(super) async fn lock(ctx: &Context, args: LockArgs) -> Result<()> {
    let api = ctx.api()?;
    let fleet = ctx.fleet(&api, args.which.as_deref()).await?;
    let what = format!("lock fleet {}", fleet.slug);
    let (record, chain) = Box::pin(ctx.chain(&api, &fleet)).await?;
    let policy = Policy {
        release_mode: args.mode.into(),
        env_mode: EnvMode::Declared,
        terminal: args.terminal.into(),
        allow: chain.newest.policy.allow.clone(),
    };
    let as_wanted = chain.newest.policy == policy && verify::is_locked(&chain.newest);
    let root = if args.check || as_wanted {
        if !verify::is_locked(&chain.newest) {
            let why = format!("root {} does not lock it", chain.newest.version);
            return Err(
                Failure::trust("not_locked", what, why).next("leave out --check to make a root that does")
            );
        }
        chain.newest
    } else {
        ctx.confirm(&format!(
            "From root {} on, devices of {} run only what your release key signed. Go on?",
            chain.newest.version + 1,
            fleet.slug
        ))?;
        let change = Change::Policy(policy);
        Box::pin(apply(ctx, &api, &fleet, &record, chain, change, 365)).await?
    };
    if !verify::is_locked(&root) {
        let why = "with these choices the server could still run code of its own";
        return Err(Failure::usage(what, why).next("--mode owner|both, --terminal off|grant"));
    }
    let lines = Box::pin(wait(ctx, &api, &fleet, &record, &root, &args)).await?;
    conclude(ctx, &fleet.slug, &root, &lines)
}

pub(super) async fn unlock(ctx: &Context, which: Option<&str>) -> Result<()> {
    let api = ctx.api()?;
    let fleet = ctx.fleet(&api, which).await?;
    let (record, chain) = Box::pin(ctx.chain(&api, &fleet)).await?;
    if !verify::is_locked(&chain.newest) {
        let why = format!("root {} does not lock it", chain.newest.version);
        return Err(Failure::usage(format!("unlock fleet {}", fleet.slug), why));
    }
    ctx.confirm("From then on the server can make devices run what its builder signs. Go on?")?;
    let policy =
        Policy { release_mode: ReleaseMode::Builder, env_mode: EnvMode::Open, ..chain.newest.policy.clone() };
    let root = Box::pin(apply(ctx, &api, &fleet, &record, chain, Change::Policy(policy), 365)).await?;
    let value = json!({ "fleet": fleet.slug, "root_version": root.version, "locked": false });
    ctx.out.result(&value, || format!("fleet {} is unlocked by root {}", fleet.slug, root.version));
    Ok(())
}

/// Looks until every device has proven the lock, one proves something else, or time is up.
async fn wait(
    ctx: &Context,
    api: &Api,
    fleet: &Fleet,
    record: &FleetRecord,
    root: &Verified<Root>,
    args: &LockArgs,
) -> Result<Vec<Line>> {
    let wanted = Wanted {
        fleet_id: record.fleet_id,
        root_version: root.version,
        root_sha256: root.sha256(),
        lock: LockState::Locked,
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(args.timeout);
    let mut told = String::new();
    loop {
        let mut cards = ctx.home.introductions(record.fleet_id)?;
        let claims = claims(api, fleet).await?;
        let mut lines = judge(&wanted, &cards, &claims);
        for (id, key) in lines.iter().filter_map(|line| line.vouched.clone()) {
            if let Some(card) = cards.iter_mut().find(|card| card.id == id && !card.keys_seen.contains(&key))
            {
                card.keys_seen.push(key);
                ctx.home.save_introduction(card)?;
            }
        }
        if args.allow_unseen {
            let seen = |line: &Line| {
                line.device_id.is_some()
                    || !cards.iter().any(|c| {
                        c.keys_seen.is_empty()
                            && line.name == c.name.clone().unwrap_or_else(|| format!("card {}", c.id))
                    })
            };
            lines.retain(seen);
        }
        let waiting = lines.iter().filter(|l| matches!(l.standing, Standing::Waiting(_))).count();
        if waiting == 0 || tokio::time::Instant::now() >= deadline {
            return Ok(lines);
        }
        let state = format!("{} of {} devices have proven the lock", lines.len() - waiting, lines.len());
        if state != told {
            ctx.out.remark(&state);
            told = state;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What the server shows of the devices that are in.
async fn claims(api: &Api, fleet: &Fleet) -> Result<Vec<Claim>> {
    let what = format!("look at the devices of fleet {}", fleet.slug);
    let devices = api.all(&what, &format!("/fleets/{}/devices", seg(&fleet.slug)), "").await?;
    let mut claims = Vec::new();
    for device in devices {
        // A device that was shut out gets no assignment; it is not the lock's matter.
        if matches!(text(&device, "state").as_str(), "revoked" | "rejected") {
            continue;
        }
        let Some(claim) = claim_of(&device) else { continue };
        let path = format!("/devices/{}/report", claim.device_id);
        let report =
            api.maybe_bytes(&what, &path, Report::MAX_BYTES).await?.filter(|bytes| !bytes.is_empty());
        claims.push(Claim { report, ..claim });
    }
    Ok(claims)
}

/// What the server shows of a device, without its Report.
pub(super) fn claim_of(device: &Value) -> Option<Claim> {
    Some(Claim {
        device_id: text(device, "device_id").parse().ok()?,
        name: text(device, "name"),
        public_key: text(device, "public_key").parse().ok(),
        introduction_id: device["introduction_id"].as_str().map(str::to_owned),
        introduction_mac: device["introduction_mac"].as_str().and_then(|mac| mac.parse().ok()),
        report: None,
    })
}

/// Prints who proved it and who did not; fails where anybody did not.
fn conclude(ctx: &Context, slug: &str, root: &Verified<Root>, lines: &[Line]) -> Result<()> {
    let state = |line: &Line| match &line.standing {
        Standing::Proven => ("proven", String::new()),
        Standing::Waiting(why) => ("waiting", why.clone()),
        Standing::Unproven(why) => ("not proven", why.clone()),
    };
    let devices: Vec<Value> = lines
        .iter()
        .map(|line| {
            let (state, why) = state(line);
            json!({ "device_id": line.device_id, "name": line.name, "state": state, "why": why })
        })
        .collect();
    let count = |wanted: &str| devices.iter().filter(|d| d["state"] == wanted).count();
    let (waiting, unproven) = (count("waiting"), count("not proven"));
    let locked = waiting + unproven == 0;
    let value = json!({ "fleet": slug, "root_version": root.version, "locked": locked, "devices": devices });
    ctx.out.result(&value, || {
        let rows = devices
            .iter()
            .map(|d| vec![text(d, "name"), short(&text(d, "device_id")), text(d, "state"), text(d, "why")]);
        let mut out = table(&["device", "id", "lock", "why"], rows);
        if locked {
            out = format!(
                "{out}\nfleet {slug} is locked by root {}: {} device(s) proved it",
                root.version,
                devices.len()
            );
        }
        out
    });
    let what = format!("lock fleet {slug}");
    let again = format!("copal fleet lock {slug} --check");
    if unproven > 0 {
        let why = format!("{unproven} of {} did not prove it, see above", devices.len());
        return Err(Failure::trust("lock_not_proven", what, why).next(format!(
            "the root is in force for devices that have it; revoke what should not be there (copal device revoke, \
             copal device cards forget), then: {again}"
        )));
    }
    if waiting > 0 {
        let why = format!("{waiting} of {} did not show the new root in time", devices.len());
        return Err(Failure::new(Kind::Timeout, "lock_not_shown", what, why)
            .next(format!("bring them online, then: {again}")));
    }
    Ok(())
}
