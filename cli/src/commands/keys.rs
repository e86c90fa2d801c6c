//! Keys on this machine. Private keys are written once, shown never.

use copal_protocol::documents::Role;
use serde_json::json;

use super::fleets::own_label;
use crate::{
    args::KeysCommand,
    context::{Context, passphrase_of, read_secret},
    failure::{Failure, Result},
    home::{
        Existing,
        keyfile::KeyFile,
        keys::{SetInfo, StoredKey, generate, open_key_file},
        write_private,
    },
    output::{short, text},
};

pub(super) fn run(ctx: &Context, command: KeysCommand) -> Result<()> {
    match command {
        KeysCommand::Init { set, count, threshold, label, passphrase } => {
            init(ctx, &set, count, threshold, label, passphrase)
        }
        KeysCommand::Add { role, set, label, passphrase } => add(ctx, &set, role.into(), label, passphrase),
        KeysCommand::Show { set } => show(ctx, set),
        KeysCommand::Export { key, set, out } => {
            let mut found = ctx.home.load_keys(&set, None, &mut passphrase_of)?;
            found.retain(|k| k.file.key.public().id().to_string().starts_with(&key));
            let what = format!("export the key {key}");
            let Some(stored) = found.pop().filter(|_| found.is_empty() && key.len() >= 4) else {
                return Err(Failure::not_found(what, format!("not exactly one key of set {set} begins so"))
                    .next("copal keys show"));
            };
            // As it is stored: a protected key stays protected.
            let bytes = zeroize::Zeroizing::new(crate::home::read_private(&stored.path)?.unwrap_or_default());
            write_private(&out, &bytes, Existing::Keep)?;
            ctx.out.remark("this file is a private key: whoever has it can sign as you");
            ctx.out.result(&key_json(&set, &stored), || format!("wrote {}", out.display()));
            Ok(())
        }
        KeysCommand::Import { file, set } => {
            let (key, file_text) = open_key_file(&file, &mut passphrase_of)?;
            let id = key.key.public().id();
            let known = ctx.home.load_keys(&set, Some(key.role), &mut passphrase_of)?;
            if known.iter().any(|k| k.file.key.public().id() == id) {
                return Err(Failure::local(
                    format!("import the key {id}"),
                    format!("set {set} has it already"),
                ));
            }
            let path = ctx.home.add_key_text(&set, &key, &file_text)?;
            let stored = StoredKey { path, file: key };
            ctx.out.result(&key_json(&set, &stored), || {
                format!("added {} as {}", short(&id.to_string()), stored.path.display())
            });
            Ok(())
        }
    }
}

fn init(
    ctx: &Context,
    set: &str,
    count: u32,
    threshold: u32,
    label: Option<String>,
    passphrase: bool,
) -> Result<()> {
    let what = format!("make the key set {set}");
    if threshold > count {
        return Err(
            Failure::usage(what, format!("{threshold} of {count} keys cannot sign")).next("raise --count")
        );
    }
    if let Some(path) = ctx.home.key_paths(set)?.first() {
        return Err(Failure::local(
            what,
            format!("{} is there already; keys are never overwritten", path.display()),
        )
        .next("use the keys there are (copal keys show), or another set (--set NAME)"));
    }
    let label = label.unwrap_or_else(own_label);
    let passphrase = if passphrase { Some(new_passphrase(ctx)?) } else { None };
    let mut made = Vec::new();
    for role in std::iter::repeat_n(Role::Root, count as usize).chain([Role::Release, Role::Host]) {
        let file = generate(role, &label)?;
        let path = ctx.home.add_key(set, &file, passphrase.as_ref().map(|p| p.as_str()))?;
        made.push(StoredKey { path, file });
    }
    ctx.home.save_set_info(set, &SetInfo { root_threshold: threshold, release_threshold: 1 })?;
    print(ctx, &made.iter().map(|key| key_json(set, key)).collect::<Vec<_>>());
    ctx.out.remark(
        "back these files up where the server cannot reach: without the root key nobody can ever change the fleet's rules",
    );
    ctx.out.remark("next: copal fleet create NAME --device-type TYPE --arch ARCH");
    Ok(())
}

/// One more key of a role: a set that was made before a role was known lacks it.
fn add(ctx: &Context, set: &str, role: Role, label: Option<String>, passphrase: bool) -> Result<()> {
    if matches!(role, Role::Builder | Role::Assign) {
        return Err(Failure::usage(
            format!("add a {} key", role.as_str()),
            "the server makes and keeps its own keys; nobody else may have them",
        ));
    }
    if ctx.home.key_paths(set)?.is_empty() {
        return Err(Failure::not_found(format!("add a key to set {set}"), "there is no such set")
            .next(format!("copal keys init --set {set}")));
    }
    let passphrase = if passphrase { Some(new_passphrase(ctx)?) } else { None };
    let file = generate(role, &label.unwrap_or_else(own_label))?;
    let path = ctx.home.add_key(set, &file, passphrase.as_ref().map(|p| p.as_str()))?;
    let public = file.key.public();
    print(ctx, &[key_json(set, &StoredKey { path, file })]);
    ctx.out.remark(format!(
        "fleets believe it once their root lists it: copal root add-key {} {public} --fleet FLEET",
        role.as_str()
    ));
    Ok(())
}

fn new_passphrase(ctx: &Context) -> Result<zeroize::Zeroizing<String>> {
    let where_ = ctx.home.path("keys");
    let first = passphrase_of(&where_)?;
    if std::env::var_os("COPAL_KEY_PASSPHRASE_FILE").is_none()
        && *read_secret("the passphrase again")? != *first
    {
        return Err(Failure::usage("protect the keys", "the two passphrases differ"));
    }
    Ok(first)
}

fn show(ctx: &Context, set: Option<String>) -> Result<()> {
    let sets = match set {
        Some(set) => vec![set],
        None => {
            let entries = std::fs::read_dir(ctx.home.path("keys"));
            let names = entries.into_iter().flatten().filter_map(|e| e.ok()?.file_name().into_string().ok());
            let mut sets: Vec<String> = names.collect();
            sets.sort();
            sets
        }
    };
    let mut keys = Vec::new();
    for set in sets {
        for key in ctx.home.load_keys(&set, None, &mut passphrase_of)? {
            keys.push(key_json(&set, &key));
        }
    }
    print(ctx, &keys);
    Ok(())
}

fn print(ctx: &Context, keys: &[serde_json::Value]) {
    ctx.out.list(keys, &["set", "role", "keyid", "public key", "label", "file"], |key| {
        let keyid = short(&text(key, "keyid"));
        vec![
            text(key, "set"),
            text(key, "role"),
            keyid,
            text(key, "public_key"),
            text(key, "label"),
            text(key, "file"),
        ]
    });
}

fn key_json(set: &str, key: &StoredKey) -> serde_json::Value {
    let KeyFile { role, label, key: private } = &key.file;
    let public = private.public();
    json!({
        "set": set, "role": role.as_str(), "keyid": public.id().to_string(),
        "public_key": public.to_string(), "label": label, "file": key.path,
    })
}
