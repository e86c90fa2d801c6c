//! Bundles: what a device installs, in one file, made and signed here. No server is asked.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
};

use copal_bundle::{
    Header, Index, ReadAt,
    encode::{Base, Packing, encode},
    file::{self, Contents, Span},
};
use copal_protocol::{
    documents::{Compat, Document as _, DocumentRef, HostPayload, Release, ReleaseKind, Role, SPEC},
    envelope::Envelope,
    ids::{FleetId, Name, Sha256Hex},
    json as strict,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    args::{AgentCommand, BundleCommand, BundleCreate, BundleWords, Floor},
    context::{Context, passphrase_of},
    failure::{Failure, Result},
    home::keys::open_key_file,
    output::{bytes, pairs, short, table, when},
};

pub(super) fn run(ctx: &Context, command: BundleCommand) -> Result<()> {
    match command {
        BundleCommand::Create(args) => create(ctx, &args),
        BundleCommand::Inspect { file, full } => inspect(ctx, &file, full),
        BundleCommand::Sign { file, key } => sign(ctx, &file, &key),
    }
}

pub(super) fn agent(ctx: &Context, command: AgentCommand) -> Result<()> {
    let AgentCommand::Bundle { binary, words } = command;
    let what = format!("make the bundle {}", words.out.display());
    let failed = |e: io::Error| Failure::local(&what, format!("{}: {e}", binary.display()));
    let mut from = File::open(&binary).map_err(failed)?;
    let (size, sha256) = measure(&mut from).map_err(failed)?;
    let mut release = release(ctx, &what, &words)?;
    let payload = HostPayload { size, sha256, index: None, verity_root: None };
    release.payloads.insert(name("agent"), payload);
    let member = Member { name: "agent", index: None, data: from };
    assemble(ctx, &what, &words, &release, vec![member])
}

/// A payload on its way into a bundle file.
struct Member {
    name: &'static str,
    index: Option<File>,
    data: File,
}

fn name(word: &str) -> Name {
    word.parse().expect("payload names are names")
}

fn create(ctx: &Context, args: &BundleCreate) -> Result<()> {
    let words = &args.words;
    let what = format!("make the bundle {}", words.out.display());
    let mut release = release(ctx, &what, words)?;
    release.compat.device_types = args.device_type.iter().cloned().collect();
    release.data_schema = args.data_schema;
    let images = [("boot", args.boot.as_deref()), ("rootfs", Some(args.rootfs.as_path()))];
    let mut members = Vec::new();
    for (payload, image) in images.into_iter().filter_map(|(n, i)| Some((n, i?))) {
        let bases = bases(&what, payload, &args.base)?;
        let (member, described) =
            carry(ctx, &what, payload, image, &Packing { bases: &bases, level: args.level }, &words.out)?;
        release.payloads.insert(name(payload), described);
        members.push(member);
    }
    assemble(ctx, &what, words, &release, members)
}

/// What older images have. A raw image is one of the root partition; a bundle has each payload's index.
fn bases(what: &str, payload: &str, files: &[PathBuf]) -> Result<Vec<Base>> {
    let mut bases = Vec::new();
    for path in files {
        let failed =
            |e: &dyn std::fmt::Display| Failure::local(what, format!("base {}: {e}", path.display()));
        let mut from = File::open(path).map_err(|e| failed(&e))?;
        match file::read(&mut from) {
            Ok(contents) => {
                let found = contents.payloads.iter().find(|p| p.name == payload).and_then(|p| p.index);
                let Some(span) = found else { continue };
                let part = Part { file: &from, span };
                let index = Index::open(part, span.size).map_err(|e| failed(&e))?;
                bases.push(Base::from_index(&index).map_err(|e| failed(&e))?);
            }
            Err(_) if payload == "rootfs" => {
                from.seek(SeekFrom::Start(0)).map_err(|e| failed(&e))?;
                bases.push(Base::from_image(BufReader::new(from)).map_err(|e| failed(&e))?);
            }
            Err(_) => {}
        }
    }
    Ok(bases)
}

/// A piece of a file, read as if it were one.
struct Part<'a> {
    file: &'a File,
    span: Span,
}

impl ReadAt for Part<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.span.size);
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.file.read_at(self.span.offset + offset, buffer)
    }
}

/// Makes index and data of an image, in files that vanish when they are closed.
fn carry(
    ctx: &Context,
    what: &str,
    payload: &'static str,
    image: &Path,
    packing: &Packing<'_>,
    out: &Path,
) -> Result<(Member, HostPayload)> {
    let failed = |e: &dyn std::fmt::Display| Failure::local(what, format!("{}: {e}", image.display()));
    let mut from = BufReader::with_capacity(1 << 20, File::open(image).map_err(|e| failed(&e))?);
    let folder = folder_of(out);
    let temporary = || tempfile::tempfile_in(folder).map_err(|e| failed(&e));
    let (mut index, mut data) = (temporary()?, temporary()?);
    let bar = bar(ctx, payload);
    let made = encode(
        &mut from,
        packing,
        &mut BufWriter::new(&mut data),
        &mut BufWriter::new(&mut index),
        |share| {
            bar.set_position((share * 1000.0) as u64);
        },
    );
    bar.finish_and_clear();
    let made = made.map_err(|e| failed(&e))?;
    for (base, lacking) in made.lacking.iter().enumerate() {
        let fetched = bytes(lacking + made.index_size);
        ctx.out.remark(format!("{payload}: a device with base {} fetches {fetched}", base + 1));
    }
    let described = HostPayload {
        size: made.header.image_size,
        sha256: Sha256Hex::from_bytes(made.header.image_sha256),
        index: Some(DocumentRef {
            sha256: Sha256Hex::from_bytes(made.index_sha256),
            size: Some(made.index_size),
        }),
        verity_root: None,
    };
    Ok((Member { name: payload, index: Some(index), data }, described))
}

fn bar(ctx: &Context, payload: &str) -> ProgressBar {
    if !ctx.out.interactive() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} %").expect("a fixed template");
    ProgressBar::new(1000).with_style(style).with_message(payload.to_owned())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The release but for its payloads.
fn release(ctx: &Context, what: &str, words: &BundleWords) -> Result<Release> {
    if words.out.exists() && !words.force {
        return Err(Failure::local(what, "the file is there already").next("add --force to overwrite it"));
    }
    // Seconds: a later bundle of the same fleet counts higher wherever it is made.
    let counter = ctx.now;
    let rollback_floor = match words.rollback_floor {
        None => 0,
        Some(Floor::Current) => counter,
        Some(Floor::Counter(floor)) if floor <= counter => floor,
        Some(Floor::Counter(floor)) => {
            let why =
                format!("the floor {floor} is above its own counter {counter}: no device would take it");
            return Err(Failure::usage(what, why));
        }
    };
    Ok(Release {
        spec: SPEC,
        fleet_id: fleet_id(ctx, what, words.fleet_id)?,
        kind: ReleaseKind::Host,
        app_id: None,
        counter,
        version: words.release_version.clone(),
        commit: String::new(),
        created_at: ctx.now,
        expires: None,
        rollback_floor,
        compat: Compat { arch: [words.arch.clone()].into(), ..Compat::default() },
        build_record: None,
        services: BTreeMap::new(),
        volumes: BTreeMap::new(),
        networks: BTreeMap::new(),
        payloads: BTreeMap::new(),
        data_schema: None,
        min_from: words.min_from.clone(),
        ext: None,
    })
}

/// The id given, or of the fleet this machine knows.
fn fleet_id(ctx: &Context, what: &str, given: Option<FleetId>) -> Result<FleetId> {
    if let Some(id) = given {
        return Ok(id);
    }
    let mut known = ctx.home.fleet_records()?;
    if let Some(slug) = &ctx.globals.fleet {
        known.retain(|record| record.slug == *slug);
    }
    match known.as_slice() {
        [only] => Ok(only.fleet_id),
        [] => Err(Failure::not_found(what, "this machine does not know the fleet")
            .next("make it on the machine that made the fleet, or give --fleet-id")),
        _ => Err(Failure::usage(what, "it is not clear for which fleet").next("add --fleet NAME")),
    }
}

/// Writes the bundle file beside its place and moves it there when it is whole.
fn assemble(
    ctx: &Context,
    what: &str,
    words: &BundleWords,
    release: &Release,
    mut members: Vec<Member>,
) -> Result<()> {
    let failed = |e: io::Error| Failure::local(what, e);
    let document = serde_json::to_value(release).map_err(|e| Failure::local(what, e))?;
    let json = json!({ "unsigned": document }).to_string();
    let mut out = tempfile::NamedTempFile::new_in(folder_of(&words.out)).map_err(failed)?;
    {
        let mut to = BufWriter::with_capacity(1 << 20, out.as_file_mut());
        put(&mut to, "release.json", &mut json.as_bytes(), json.len() as u64).map_err(failed)?;
        for member in &mut members {
            let parts = [member.index.as_mut().map(|f| ("index", f)), Some(("data", &mut member.data))];
            for (part, from) in parts.into_iter().flatten() {
                let size = from.seek(SeekFrom::End(0)).map_err(failed)?;
                from.seek(SeekFrom::Start(0)).map_err(failed)?;
                put(&mut to, &format!("{}.{part}", member.name), from, size).map_err(failed)?;
            }
        }
        file::finish(&mut to).map_err(failed)?;
    }
    keep(out, &words.out).map_err(failed)?;
    let size = std::fs::metadata(&words.out).map_err(failed)?.len();
    let answer = json!({ "file": words.out.display().to_string(), "size": size, "release": document });
    ctx.out.result(&answer, || format!("wrote {} ({}), not signed yet", words.out.display(), bytes(size)));
    ctx.out.remark(format!("next: copal os bundle sign {}", words.out.display()));
    Ok(())
}

fn put(to: &mut impl Write, name: &str, from: &mut impl Read, size: u64) -> io::Result<()> {
    file::begin(to, name, size)?;
    if io::copy(&mut from.take(size), to)? != size {
        return Err(io::Error::other(format!("{name} became shorter while it was read")));
    }
    file::pad(to, size)
}

/// A bundle is nothing secret: whoever may read the folder may read it.
fn keep(out: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    out.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    out.as_file().sync_all()?;
    out.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// A bundle that was read and found to be what it says.
struct Opened {
    file: File,
    contents: Contents,
    release: Release,
    /// The exact bytes of the release, which signatures are over.
    payload: Vec<u8>,
    /// Where it is signed.
    envelope: Option<Envelope>,
}

fn open(what: &str, path: &Path) -> Result<Opened> {
    let bad = |why: &dyn std::fmt::Display| Failure::trust("bundle_damaged", what, why);
    let mut from = File::open(path).map_err(|e| Failure::local(what, e))?;
    let contents = file::read(&mut from).map_err(|e| bad(&e))?;
    let value: Value = serde_json::from_slice(&contents.release).map_err(|e| bad(&e))?;
    let (payload, envelope) = match value.get("unsigned") {
        Some(document) => (document.to_string().into_bytes(), None),
        None => {
            let envelope =
                Envelope::parse::<Release>(&contents.release).map_err(|e| Failure::verify(what, &e))?;
            (envelope.payload().to_vec(), Some(envelope))
        }
    };
    let release: Release = strict::from_slice(&payload, strict::PAYLOAD_DEPTH).map_err(|e| bad(&e))?;
    if release.kind != ReleaseKind::Host {
        return Err(bad(&"its release is not of an operating system or agent"));
    }
    let named: Vec<_> = release.payloads.keys().map(Name::as_str).collect();
    let held: Vec<_> = contents.payloads.iter().map(|p| p.name.as_str()).collect();
    if named != held {
        return Err(bad(&format!("its release names {named:?}, it holds {held:?}")));
    }
    Ok(Opened { file: from, contents, release, payload, envelope })
}

/// Compares what the release names with what the file holds; with `full`, to the last byte. Gives a row a payload.
fn check(what: &str, opened: &Opened, full: bool) -> Result<Vec<Value>> {
    let bad = |why: String| Failure::trust("bundle_damaged", what, why);
    let mut rows = Vec::new();
    for held in &opened.contents.payloads {
        let named = &opened.release.payloads[&name(&held.name)];
        let hash = |span: Span| {
            sha256_of(&opened.file, span).map_err(|e| Failure::local(what, format!("{}: {e}", held.name)))
        };
        let mut row = json!({ "payload": held.name, "size": named.size, "sha256": named.sha256,
            "index_size": held.index.map_or(0, |i| i.size), "data_size": held.data.size });
        match (held.index, &named.index) {
            (None, None) => {
                if held.data.size != named.size || hash(held.data)? != *named.sha256.as_bytes() {
                    return Err(bad(format!("{} is not the file its release names", held.name)));
                }
            }
            (Some(span), Some(reference)) => {
                if reference.size != Some(span.size) || hash(span)? != *reference.sha256.as_bytes() {
                    return Err(bad(format!("{}.index is not the one its release names", held.name)));
                }
                let index = Index::open(Part { file: &opened.file, span }, span.size)
                    .map_err(|e| bad(format!("{}.index: {e}", held.name)))?;
                let header: &Header = index.header();
                let same = header.image_size == named.size && header.image_sha256 == *named.sha256.as_bytes();
                if !same || header.data_size != held.data.size {
                    return Err(bad(format!("{}.index is of another image or data", held.name)));
                }
                if full && hash(held.data)? != header.data_sha256 {
                    return Err(bad(format!("{}.data is not the one its index names", held.name)));
                }
                row["blocks"] = json!(header.distinct);
                row["groups"] = json!(header.groups);
            }
            _ => {
                return Err(bad(format!(
                    "{} has an index where its release names none, or lacks it",
                    held.name
                )));
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

fn inspect(ctx: &Context, path: &Path, full: bool) -> Result<()> {
    let what = format!("inspect {}", path.display());
    let opened = open(&what, path)?;
    let rows = check(&what, &opened, full)?;
    let release = &opened.release;
    let id = Sha256Hex::of(&opened.payload);
    let signed: Vec<_> =
        opened.envelope.iter().flat_map(Envelope::signatures).map(|s| s.keyid.to_string()).collect();
    let value = json!({ "release": id, "signed_by": signed, "document": release, "payloads": rows });
    ctx.out.result(&value, || {
        let join =
            |words: &std::collections::BTreeSet<String>| words.iter().cloned().collect::<Vec<_>>().join(", ");
        let optional = |v: Option<String>| v.unwrap_or_else(|| "any".to_owned());
        let head = pairs(&[
            ("release", short(&id.to_string())),
            ("version", release.version.to_string()),
            ("counter", release.counter.to_string()),
            ("fleet", release.fleet_id.to_string()),
            ("device types", join(&release.compat.device_types)),
            ("architecture", join(&release.compat.arch)),
            ("from version", optional(release.min_from.as_ref().map(ToString::to_string))),
            ("rollback floor", release.rollback_floor.to_string()),
            ("data schema", release.data_schema.map(|n| n.to_string()).unwrap_or_default()),
            ("made", when(&json!(release.created_at))),
            ("signed by", if signed.is_empty() { "nobody yet".to_owned() } else { signed.join(", ") }),
        ]);
        let rows = rows.iter().map(|row| {
            let size = |field: &str| row[field].as_u64().map(bytes).unwrap_or_default();
            let sha256 = short(row["sha256"].as_str().unwrap_or_default());
            vec![
                row["payload"].as_str().unwrap_or_default().to_owned(),
                size("size"),
                sha256,
                size("index_size"),
                size("data_size"),
            ]
        });
        format!("{head}\n{}", table(&["payload", "image", "sha256", "index", "data"], rows))
    });
    Ok(())
}

fn sign(ctx: &Context, path: &Path, files: &[PathBuf]) -> Result<()> {
    let what = format!("sign {}", path.display());
    let mut opened = open(&what, path)?;
    // What is signed is what was read to the end and found to be as it says.
    check(&what, &opened, true)?;
    let mut keys = Vec::new();
    for path in files {
        keys.push(open_key_file(path, &mut passphrase_of)?.0);
    }
    if files.is_empty() {
        let record = ctx.home.fleet_record(opened.release.fleet_id)?;
        let set = record.map_or_else(|| crate::home::keys::DEFAULT_SET.to_owned(), |r| r.keys);
        let stored = ctx.home.load_keys(&set, Some(Role::Host), &mut passphrase_of)?;
        keys.extend(stored.into_iter().map(|k| k.file));
    }
    if let Some(other) = keys.iter().find(|k| k.role != Role::Host) {
        let why = format!("a {} key signs no operating system", other.role.as_str());
        return Err(Failure::trust("E_SIG_WRONG_ROLE", what, why));
    }
    if keys.is_empty() {
        return Err(Failure::not_found(what, "there is no host key on this machine")
            .next("copal keys add host, then copal root add-key host PUBLIC; or --key FILE"));
    }
    let compat = &opened.release.compat;
    let is_agent = opened.release.payloads.keys().any(|name| name.as_str() == "agent");
    let (kind, of) =
        if is_agent { ("agent", &compat.arch) } else { ("operating system", &compat.device_types) };
    let of: Vec<&str> = of.iter().map(String::as_str).collect();
    ctx.confirm(&format!("Sign {kind} {} for {}?", opened.release.version, of.join(", ")))?;
    let mut envelope =
        opened.envelope.take().unwrap_or_else(|| Envelope::unsigned::<Release>(opened.payload.clone()));
    for key in &keys {
        envelope.add_signature(&key.key);
    }
    let json = envelope.to_bytes();
    if json.len() > Release::MAX_BYTES {
        return Err(Failure::local(what, "the release is too large"));
    }
    let failed = |e: io::Error| Failure::local(&what, e);
    let mut out = tempfile::NamedTempFile::new_in(folder_of(path)).map_err(failed)?;
    {
        let mut to = BufWriter::with_capacity(1 << 20, out.as_file_mut());
        put(&mut to, "release.json", &mut json.as_slice(), json.len() as u64).map_err(failed)?;
        for payload in &opened.contents.payloads {
            for (part, span) in [("index", payload.index), ("data", Some(payload.data))] {
                let Some(span) = span else { continue };
                opened.file.seek(SeekFrom::Start(span.offset)).map_err(failed)?;
                put(&mut to, &format!("{}.{part}", payload.name), &mut opened.file, span.size)
                    .map_err(failed)?;
            }
        }
        file::finish(&mut to).map_err(failed)?;
    }
    keep(out, path).map_err(failed)?;
    let by: Vec<_> = keys.iter().map(|k| k.key.public().id().to_string()).collect();
    let answer =
        json!({ "file": path.display().to_string(), "release": envelope.payload_sha256(), "signed_by": by });
    ctx.out.result(&answer, || {
        let by: Vec<_> = by.iter().map(|id| short(id)).collect();
        format!("signed {} with {}", short(&envelope.payload_sha256().to_string()), by.join(", "))
    });
    Ok(())
}

fn measure(from: &mut File) -> io::Result<(u64, Sha256Hex)> {
    let size = from.seek(SeekFrom::End(0))?;
    let sha256 = sha256_of(from, Span { offset: 0, size })?;
    Ok((size, Sha256Hex::from_bytes(sha256)))
}

fn sha256_of(from: &File, span: Span) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    let mut done = 0;
    while done < span.size {
        let some = usize::try_from(span.size - done).unwrap_or(usize::MAX).min(piece.len());
        ReadAt::read_at(from, span.offset + done, &mut piece[..some])?;
        hash.update(&piece[..some]);
        done += some as u64;
    }
    Ok(hash.finalize().into())
}
