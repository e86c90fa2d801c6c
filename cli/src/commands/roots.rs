//! Roots: every change makes version N+1, signed by the root keys of N and of N+1, kept here and uploaded.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use copal_protocol::{
    documents::{CloudAddress, Document as _, Role, Root},
    envelope::Envelope,
    ids::KeyId,
    json as strict,
    keys::{PublicKey, SigningKey},
    verify::{self, Verified},
};
use serde_json::{Value, json};

use super::fleets::{own_label, policy, server_key, short_id};
use crate::{
    args::{CloudArgs, KeyRole, RootCommand},
    context::{Context, Fleet, passphrase_of, upload_root},
    failure::{Failure, Kind, Result},
    home::{
        Existing,
        fleets::{Chain, FleetRecord},
        keyfile::KeyFile,
        keys::generate,
        write_private,
    },
    http::{Api, seg},
    output::{pairs, scalar, table, text, when},
    roots::{self, Change, Listed},
};

/// Days a root made by a change is good for.
const DAYS: u32 = 365;

pub(super) async fn run(ctx: &Context, command: RootCommand) -> Result<()> {
    let api = match &command {
        RootCommand::Show { which, offline: true } => return show_offline(ctx, which.as_deref()),
        _ => ctx.api()?,
    };
    let word = match &command {
        RootCommand::Show { which, .. }
        | RootCommand::Renew { which, .. }
        | RootCommand::Trust { which, .. } => which.clone(),
        _ => None,
    };
    let fleet = ctx.fleet(&api, word.as_deref()).await?;
    if let RootCommand::Trust { fingerprint, keys, .. } = command {
        return Box::pin(trust(ctx, &api, &fleet, &fingerprint, keys)).await;
    }
    let (record, chain) = Box::pin(ctx.chain(&api, &fleet)).await?;
    let mut days = DAYS;
    let change = match command {
        RootCommand::Show { .. } => {
            print(ctx, &fleet.slug, &chain.newest);
            return Ok(());
        }
        RootCommand::Sign { file } => {
            return Box::pin(sign_file(ctx, &api, &fleet, &record, chain, &file)).await;
        }
        RootCommand::Trust { .. } => return Ok(()),
        RootCommand::Renew { new_epoch, days: for_days, .. } => {
            days = for_days;
            if new_epoch { Change::NewEpoch } else { Change::Renew }
        }
        RootCommand::Rotate { role, old } => {
            Box::pin(rotate(ctx, &fleet, &record, &chain.newest, role, old)).await?
        }
        RootCommand::AddKey { role, public, label } => {
            let public: PublicKey =
                public.parse().map_err(|e| Failure::usage(format!("use the key {public:?}"), e))?;
            Change::AddKey(Listed { role: role.into(), public, label })
        }
        RootCommand::DropKey { key } => Change::DropKey(listed_key(&chain.newest, &key)?),
        RootCommand::Threshold { role, count } => Change::Threshold(role.into(), count),
        RootCommand::RevokeRelease { release } => {
            let id = release_of(ctx, &api, &fleet, &release).await?;
            ctx.confirm(&format!("Release {release} will be stopped on every device that runs it. Go on?"))?;
            Change::RevokeRelease(text(&id, "id").parse().map_err(|e| Failure::usage("revoke a release", e))?)
        }
        RootCommand::SetFloor { at, of } => {
            let counter = match at.parse::<u64>() {
                Ok(counter) => counter,
                Err(_) => release_of(ctx, &api, &fleet, &at).await?["counter"].as_u64().ok_or_else(|| {
                    Failure::usage(format!("set the floor to {at}"), "that release shows no counter")
                })?,
            };
            Change::Floor { of: of.unwrap_or_else(|| record.app_id.to_string()), counter }
        }
        RootCommand::Policy { policy: args, reset } => {
            Change::Policy(policy(&args, chain.newest.policy.clone(), reset)?)
        }
        RootCommand::Cloud { cloud: CloudArgs { urls, pins } } => {
            Change::Cloud(CloudAddress { urls, tls_pins: pins })
        }
    };
    let root = Box::pin(apply(ctx, &api, &fleet, &record, chain, change, days)).await?;
    print(ctx, &fleet.slug, &root);
    Ok(())
}

/// Makes the next root, signs it with the keys of this machine, keeps and uploads it.
///
/// # Errors
/// Where other machines have to sign as well (the file to take there is named), or the server refuses it.
pub(super) async fn apply(
    ctx: &Context,
    api: &Api,
    fleet: &Fleet,
    record: &FleetRecord,
    chain: Chain,
    change: Change,
    days: u32,
) -> Result<Verified<Root>> {
    let what = format!("make the next root of fleet {}", fleet.slug);
    let root = roots::next(&chain.newest, change, ctx.now, days).map_err(|e| Failure::usage(&what, e))?;
    let keys = ctx.home.load_keys(&record.keys, Some(Role::Root), &mut passphrase_of)?;
    let privates: Vec<&SigningKey> = keys.iter().map(|k| &k.file.key).collect();
    let envelope =
        roots::sign(&root, Some(&chain.newest), &privates).map_err(|e| Failure::usage(&what, e))?;
    let missing = roots::missing(&chain.newest, &envelope).max(roots::missing(&root, &envelope));
    if missing > 0 {
        let file = PathBuf::from(format!("{}-root-{}.json", fleet.slug, root.version));
        write_private(&file, &envelope.to_bytes(), Existing::Keep)?;
        let why =
            format!("{missing} more root key(s) must sign; what is signed so far is in {}", file.display());
        return Err(Failure::new(Kind::Failure, "signatures_missing", what, why).next(format!(
            "on a machine that has one: copal root sign {} --fleet {}",
            file.display(),
            fleet.slug
        )));
    }
    finish(ctx, api, fleet, record, chain, envelope, &what).await
}

async fn finish(
    ctx: &Context,
    api: &Api,
    fleet: &Fleet,
    record: &FleetRecord,
    mut chain: Chain,
    envelope: Envelope,
    what: &str,
) -> Result<Verified<Root>> {
    chain.push(envelope.clone()).map_err(|e| Failure::verify(what, &e))?;
    let version = chain.newest.version;
    // Kept before it is uploaded: were the answer lost, this machine must know the root that devices may hold.
    ctx.home.save_root(record.fleet_id, version, &envelope)?;
    if let Err(refused) = upload_root(api, &fleet.slug, &envelope).await {
        if matches!(refused.kind, Kind::Refused | Kind::NotFound) {
            ctx.home.forget_root(record.fleet_id, version)?;
            return Err(refused);
        }
        let next =
            "it is kept here and uploaded by the next command that needs the root, such as: copal root show";
        return Err(refused.next(next));
    }
    ctx.out.remark(format!("root {version} is signed and uploaded; devices take it over at their next poll"));
    Ok(chain.newest)
}

async fn release_of(ctx: &Context, api: &Api, fleet: &Fleet, word: &str) -> Result<Value> {
    let release = match ctx.release(api, word).await {
        // Operating systems and agents are revoked the same way.
        Err(failure) if failure.kind == Kind::NotFound => {
            super::os::find(api, fleet, word).await.map_err(|_| failure)?
        }
        other => other?,
    };
    let of = text(&release, "fleet");
    if of != fleet.slug && of != fleet.fleet_id.to_string() {
        return Err(Failure::usage(
            format!("use release {word}"),
            format!("it is not of fleet {}", fleet.slug),
        ));
    }
    Ok(release)
}

fn listed_key(root: &Root, word: &str) -> Result<KeyId> {
    let mut found = root.keys.keys().filter(|id| word.len() >= 4 && id.to_string().starts_with(word));
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(*id),
        _ => Err(Failure::not_found(format!("find the key {word}"), "not exactly one listed key begins so")
            .next("copal root show")),
    }
}

/// A new key in the place of old ones. The new private key is on disk before any root names it.
async fn rotate(
    ctx: &Context,
    fleet: &Fleet,
    record: &FleetRecord,
    root: &Root,
    role: KeyRole,
    old: Option<String>,
) -> Result<Change> {
    let named = old.map(|word| listed_key(root, &word)).transpose()?;
    let role = Role::from(role);
    let listed = |id: &KeyId| root.roles.get(&role).is_some_and(|keys| keys.keyids.contains(id));
    if matches!(role, Role::Builder | Role::Assign) {
        let field = if role == Role::Builder { "builder_key" } else { "assign_key" };
        let public = server_key(&fleet.value, field)?;
        if listed(&public.id()) {
            let why = format!("the server's {} key is still {}, which is listed", role.as_str(), public.id());
            return Err(Failure::usage("rotate the key", why).next("give the server a new key first"));
        }
        ctx.out.remark(format!("the server's new {} key  {}", role.as_str(), public.id()));
        ctx.confirm("Is this the key of your server?")?;
        let new = Listed { role, public, label: record.server.clone() };
        return Ok(Change::Rotate { new, old: named.into_iter().collect() });
    }
    let own = ctx.home.load_keys(&record.keys, Some(role), &mut passphrase_of)?;
    let ids: Vec<KeyId> = own.iter().map(|k| k.file.key.public().id()).collect();
    let replaced: BTreeSet<KeyId> = match named {
        Some(id) => BTreeSet::from([id]),
        None => ids.iter().copied().filter(|id| listed(id)).collect(),
    };
    if replaced.is_empty() {
        let why = format!("this machine holds no {} key that is listed", role.as_str());
        return Err(Failure::usage("rotate the key", why).next("name the key it replaces: --old KEYID"));
    }
    // A rotation that stopped half-way left a key that no root names yet: it is taken up again. One that an earlier
    // root listed was rotated out, perhaps because it is known to others.
    let chain = ctx.home.chain(record.fleet_id)?;
    let was_listed = |id: &KeyId| {
        let envelopes = chain.iter().flat_map(|chain| &chain.envelopes);
        envelopes
            .filter_map(|e| strict::from_slice::<Root>(e.payload(), strict::PAYLOAD_DEPTH).ok())
            .any(|root| root.keys.contains_key(id))
    };
    let fresh = own.into_iter().find(|k| !was_listed(&k.file.key.public().id()));
    let new: KeyFile = match fresh {
        Some(stored) => stored.file,
        None => {
            let file = generate(role, &own_label())?;
            let path = ctx.home.add_key(&record.keys, &file, None)?;
            ctx.out.remark(format!("made {}; back it up", path.display()));
            file
        }
    };
    let new = Listed { role, public: new.key.public(), label: new.label };
    Ok(Change::Rotate { new, old: replaced })
}

async fn sign_file(
    ctx: &Context,
    api: &Api,
    fleet: &Fleet,
    record: &FleetRecord,
    chain: Chain,
    file: &Path,
) -> Result<()> {
    let what = format!("sign the root {}", file.display());
    let bytes = crate::home::read(file)?.ok_or_else(|| Failure::not_found(&what, "there is no such file"))?;
    let mut envelope = Envelope::parse::<Root>(&bytes).map_err(|e| Failure::verify(&what, &e))?;
    let root: Root = strict::from_slice(envelope.payload(), strict::PAYLOAD_DEPTH)
        .map_err(|e| Failure::trust("E_PAYLOAD", &what, e))?;
    if root.fleet_id != record.fleet_id || root.version != chain.newest.version + 1 {
        let why = format!("it is root {} of fleet {}", root.version, root.fleet_id);
        return Err(Failure::trust("E_ROOT_VERSION", what, why).next(format!(
            "root {} of fleet {} comes next",
            chain.newest.version + 1,
            record.fleet_id
        )));
    }
    ctx.out.remark(format!("root {} as it would become\n{}", root.version, human(&fleet.slug, &root, None)));
    ctx.confirm("Sign it?")?;
    let keys = ctx.home.load_keys(&record.keys, Some(Role::Root), &mut passphrase_of)?;
    let privates: Vec<&SigningKey> = keys.iter().map(|k| &k.file.key).collect();
    let signers = roots::signers(&root, Some(&chain.newest), &privates);
    if signers.is_empty() {
        return Err(Failure::trust("E_SIG_UNKNOWN_KEY", what, "no root key of this machine is listed in it"));
    }
    for key in signers {
        envelope.add_signature(key);
    }
    let missing = roots::missing(&chain.newest, &envelope).max(roots::missing(&root, &envelope));
    if missing > 0 {
        write_private(file, &envelope.to_bytes(), Existing::Replace)?;
        let done = json!({ "version": root.version, "missing": missing, "file": file });
        ctx.out.result(&done, || format!("signed; {missing} more root key(s) must sign {}", file.display()));
        return Ok(());
    }
    let root = finish(ctx, api, fleet, record, chain, envelope, &what).await?;
    print(ctx, &fleet.slug, &root);
    Ok(())
}

/// Takes over the chain of a fleet that another machine made, on the word of the person who compared fingerprints.
async fn trust(ctx: &Context, api: &Api, fleet: &Fleet, fingerprint: &str, keys: String) -> Result<()> {
    let what = format!("take over the root of fleet {}", fleet.slug);
    if ctx.home.chain(fleet.fleet_id)?.is_some() {
        return Err(Failure::usage(what, "this machine holds its root already").next("copal root show"));
    }
    ctx.home.key_set(&keys)?;
    let path = |version: u64| format!("/fleets/{}/roots/{version}", seg(&fleet.slug));
    let mut chain: Option<Chain> = None;
    for version in 1_u64.. {
        let Some(bytes) = api.maybe_bytes(&what, &path(version), Root::MAX_BYTES).await? else { break };
        let envelope = Envelope::parse::<Root>(&bytes).map_err(|e| Failure::verify(&what, &e))?;
        match &mut chain {
            None => {
                chain = Some(Chain::begin(envelope, fleet.fleet_id).map_err(|e| Failure::verify(&what, &e))?);
            }
            Some(chain) => chain.push(envelope).map_err(|e| Failure::verify(&what, &e))?,
        }
    }
    let chain = chain.ok_or_else(|| Failure::not_found(&what, "the server has no root of it"))?;
    if chain.newest.sha256().to_string() != fingerprint {
        let why = format!("the server's newest root is {}, not the one named", chain.newest.sha256());
        return Err(Failure::trust("fingerprint_differs", what, why)
            .next("compare with `copal root show` on the machine that made it"));
    }
    let app_id = text(&fleet.value, "app_id").parse().map_err(|e| Failure::usage(&what, e))?;
    let server = api.address();
    let record = FleetRecord { slug: fleet.slug.clone(), fleet_id: fleet.fleet_id, app_id, server, keys };
    ctx.home.save_fleet_record(&record)?;
    for (version, envelope) in (1..).zip(&chain.envelopes) {
        ctx.home.save_root(fleet.fleet_id, version, envelope)?;
    }
    print(ctx, &fleet.slug, &chain.newest);
    Ok(())
}

fn show_offline(ctx: &Context, which: Option<&str>) -> Result<()> {
    let what = "show a root of this machine";
    let wanted = which.or(ctx.globals.fleet.as_deref());
    let mut records = ctx.home.fleet_records()?;
    records.retain(|r| wanted.is_none_or(|slug| slug == r.slug));
    let record = match (records.len(), records.pop()) {
        (1, Some(record)) => record,
        (0, _) => return Err(Failure::not_found(what, "no such fleet is known here")),
        _ => return Err(Failure::usage(what, "several fleets are known here").next("add --fleet NAME")),
    };
    let chain =
        ctx.home.chain(record.fleet_id)?.ok_or_else(|| Failure::not_found(what, "its chain is empty"))?;
    print(ctx, &record.slug, &chain.newest);
    Ok(())
}

fn print(ctx: &Context, slug: &str, root: &Verified<Root>) {
    let mut value = serde_json::to_value(&**root).unwrap_or_default();
    value["fleet"] = json!(slug);
    value["sha256"] = json!(root.sha256());
    value["locked"] = json!(verify::is_locked(root));
    ctx.out.result(&value, || human(slug, root, Some(root.sha256())));
    if root.expires < ctx.now {
        ctx.out.remark("this root has expired: devices accept nothing new until `copal root renew`");
    } else if root.expires < ctx.now + 30 * roots::DAY {
        ctx.out.remark("this root expires within 30 days: copal root renew");
    }
}

fn human(slug: &str, root: &Root, sha256: Option<copal_protocol::ids::Sha256Hex>) -> String {
    let allow = serde_json::to_value(&root.policy.allow).unwrap_or_default();
    let allowed: Vec<String> = allow
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| match value {
            Value::Array(list) => {
                format!("{name}: {}", list.iter().map(scalar).collect::<Vec<_>>().join(", "))
            }
            _ => name.clone(),
        })
        .collect();
    let mut out = pairs(&[
        ("fleet", format!("{slug} ({})", root.fleet_id)),
        ("root", root.version.to_string()),
        ("fingerprint", sha256.map(|s| s.to_string()).unwrap_or_default()),
        ("issued", when(&json!(root.issued_at))),
        ("expires", when(&json!(root.expires))),
        ("epoch", root.assign_epoch.to_string()),
        ("release mode", word(&root.policy.release_mode)),
        ("variables", word(&root.policy.env_mode)),
        ("terminal", word(&root.policy.terminal)),
        ("locked", if verify::is_locked(root) { "yes" } else { "no: the server is trusted" }.to_owned()),
        ("allowed", if allowed.is_empty() { "nothing of the host".to_owned() } else { allowed.join("; ") }),
        ("revoked", format!("{} release(s)", root.revoked_releases.len())),
        ("floors", root.floors.iter().map(|(of, n)| format!("{of}: {n}")).collect::<Vec<_>>().join(", ")),
        ("cloud", root.cloud.urls.join(", ")),
    ]);
    let keys = root.roles.iter().flat_map(|(role, keys)| keys.keyids.iter().map(move |id| (role, keys, id)));
    out.push('\n');
    out.push_str(&table(
        &["role", "signs", "keyid", "label"],
        keys.map(|(role, keys, id)| {
            let label = root.keys.get(id).map(|key| key.label.clone()).unwrap_or_default();
            let of = format!("{} of {}", keys.threshold, keys.keyids.len());
            vec![role.as_str().to_owned(), of, short_id(id), label]
        }),
    ));
    out
}

/// The word a value has in documents, for people to read.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().as_ref().map(scalar).unwrap_or_default()
}
