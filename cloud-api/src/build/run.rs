//! One build, from its source to a prepared release.

use std::{
    collections::BTreeMap,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use copal_compose::{BuildSpec, Project, Service, resolve};
use copal_protocol::{
    documents::{BuildRecord, Compat, ImageRef, SPEC, ServiceRelease},
    envelope::Envelope,
    ids::{Digest, Name},
};

use super::{
    BuildError, Job, Limits, bases,
    context::{self, MAX_ENTRIES},
    dockerfile,
    engine::{Call, Engine, advice, familiar},
    ignore::Ignore,
    image, platform, scratch_dir, source_file,
};
use crate::{
    app::{App, now},
    blobs::TempFile,
    registry,
    releases::{self, NewRelease},
    store::fleets,
};

/// The longest Dockerfile or ignore file read.
const MAX_TEXT: u64 = 1 << 20;

/// What our Dockerfile is called in the tar; the builder removes it before the first step.
const SENT_DOCKERFILE: &str = ".copal.Dockerfile";

/// A folder that goes when the build is over.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is swept at the next start.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let value = bytes as f64;
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.1} GB", value / 1e9),
    }
}

/// What this server calls itself on an engine it may share: the first digits of its builder key's id.
fn builder_name(app: &App) -> String {
    let mut id = app.keys.builder.public().id().to_string();
    id.truncate(12);
    id
}

/// Removes what builds left in the engine. After a build that failed by itself its last image is kept until the next
/// that succeeds: it is the cache of the corrected push.
pub(super) async fn clean(app: &App, all: bool) {
    if !all && !app.stopping.is_cancelled() {
        return;
    }
    if let Ok(engine) = Engine::connect(&app.config.docker_host).await {
        engine.prune(&builder_name(app)).await;
    }
}

/// Builds; answers the id of the prepared release.
pub(super) async fn build(app: &App, job: &Job) -> Result<String, BuildError> {
    let started_at = now();
    let request = &job.request;
    let fleet = &request.fleet;
    let root = fleets::latest_root(app, fleet.fleet_id)
        .await
        .map_err(|p| BuildError::new(p.detail()))?
        .ok_or_else(|| {
            BuildError::new(format!(
                "the fleet {0} has no root yet, so no device could believe a release; do: copal root renew {0}",
                fleet.slug
            ))
        })?;
    let engine = Engine::connect(&app.config.docker_host).await?;
    let scratch = Scratch(scratch_dir(app).join(&job.id));
    let context = scratch.0.join("context");
    tokio::fs::create_dir_all(&context).await.map_err(BuildError::internal)?;
    let limits = Limits { bytes: app.config.build.context, entries: MAX_ENTRIES };
    let (source, into) = (source_file(app, &job.id), context.clone());
    blocking(move || {
        context::unpack(std::fs::File::open(source).map_err(BuildError::internal)?, &into, limits)
    })
    .await?;
    let policy = root.policy.clone();
    let (dir, arch, device_type) = (context.clone(), fleet.arch.clone(), fleet.device_type.clone());
    let (kind, project) = blocking(move || read_project(&dir, &arch, &device_type, &policy)).await?;
    let names: Vec<&str> = project.services.keys().map(Name::as_str).collect();
    job.log.say(&format!("{kind}: {} for {}", names.join(", "), platform(fleet)));
    for warning in &project.warnings {
        job.log.say(&format!("warning: {warning}"));
    }
    let mut images: BTreeMap<Name, ImageRef> = BTreeMap::new();
    let mut external: BTreeMap<String, Digest> = BTreeMap::new();
    for (name, service) in &project.services {
        let stored = match (&service.build, &service.image) {
            (Some(spec), _) => one_build(app, job, &engine, &scratch.0, name, spec).await?,
            (None, Some(reference)) => {
                let (stored, digest) = one_pull(app, job, &engine, &scratch.0, name, reference).await?;
                external.insert(reference.clone(), digest);
                stored
            }
            (None, None) => {
                return Err(BuildError::new(format!(
                    "service {name} has neither `build` nor `image`; add one"
                )));
            }
        };
        let image = stored.image;
        job.log.say(&format!(
            "  image {} · {} layers, {} new ({}) · {}",
            image.config_digest,
            image.layers.len(),
            stored.new_layers,
            size(stored.new_bytes),
            size(image.size)
        ));
        images.insert(name.clone(), image);
    }
    let record = BuildRecord {
        spec: SPEC,
        fleet_id: fleet.fleet_id,
        app_id: fleet.app_id,
        commit: request.commit.clone().unwrap_or_default(),
        source: request.source.clone(),
        platform: platform(fleet),
        builder: engine.name.clone(),
        started_at,
        finished_at: now(),
        images: images.iter().map(|(name, image)| (name.clone(), image.config_digest)).collect(),
        external,
        ext: None,
    };
    let build_record = Envelope::sign(&record, &[&app.keys.builder]).map_err(BuildError::internal)?;
    let release = prepare(app, job, project, images, build_record).await?;
    engine.prune(&builder_name(app)).await;
    Ok(release)
}

async fn prepare(
    app: &App,
    job: &Job,
    project: Project,
    mut images: BTreeMap<Name, ImageRef>,
    build_record: Envelope,
) -> Result<String, BuildError> {
    let request = &job.request;
    let fleet = &request.fleet;
    let services = project
        .services
        .into_iter()
        .filter_map(|(name, service)| {
            let image = images.remove(&name)?;
            let Service { spec, overridable_env, .. } = service;
            let images = BTreeMap::from([(platform(fleet), image)]);
            Some((name, ServiceRelease { spec, overridable_env, images }))
        })
        .collect();
    let compat = Compat {
        device_types: [fleet.device_type.clone()].into(),
        arch: [fleet.arch.clone()].into(),
        ..Compat::default()
    };
    let new = NewRelease {
        fleet: fleet.fleet_id,
        source: request.source.clone(),
        branch: request.branch.clone(),
        note: request.note.clone(),
        draft: request.options.draft,
        build_id: Some(job.id.clone()),
        version: request.options.version.clone(),
        services,
        volumes: project.volumes,
        networks: project.networks,
        build_record,
        compat,
    };
    releases::prepare(app, new)
        .await
        .map_err(|problem| BuildError::new(format!("{} ({})", problem.detail(), problem.code())))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?
}

/// The names at the top of a folder.
fn top(dir: &Path) -> Result<Vec<String>, BuildError> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map_err(BuildError::internal)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// What the project is, for the first line of the log, and its services.
fn read_project(
    dir: &Path,
    arch: &str,
    device_type: &str,
    policy: &copal_protocol::documents::Policy,
) -> Result<(String, Project), BuildError> {
    let files = top(dir)?;
    match resolve::project(&files, arch, device_type).map_err(BuildError::new)? {
        resolve::ProjectFile::Dockerfile(file) => {
            let spec =
                BuildSpec { context: ".".to_owned(), dockerfile: Some(file.clone()), ..BuildSpec::default() };
            Ok((format!("Dockerfile project ({file})"), copal_compose::single(spec)))
        }
        resolve::ProjectFile::Compose(file) => {
            let text =
                context::read_text(dir, &file, copal_compose::MAX_FILE as u64).map_err(BuildError::new)?;
            let load = |path: &str| context::read_text(dir, path, copal_compose::MAX_FILE as u64);
            let options = copal_compose::Options {
                allow: Some(policy),
                files: Some(&load),
                ..copal_compose::Options::new(&file, arch, device_type)
            };
            let project = copal_compose::parse(&text, &options).map_err(|problems| {
                let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                BuildError::new(format!("{file} cannot be honoured:\n{}", lines.join("\n")))
            })?;
            Ok((format!("Compose project ({file})"), project))
        }
    }
}

/// The engine's name for the fleet's platform.
fn engine_platform(arch: &str) -> String {
    match arch {
        "arm" => "linux/arm/v7".to_owned(),
        other => format!("linux/{other}"),
    }
}

async fn one_build(
    app: &App,
    job: &Job,
    engine: &Engine,
    scratch: &Path,
    name: &Name,
    spec: &BuildSpec,
) -> Result<image::Stored, BuildError> {
    let fleet = &job.request.fleet;
    let context = scratch.join("context");
    let (file, text) = {
        let (dir, spec, service) = (context.clone(), spec.clone(), name.clone());
        let (arch, device_type) = (fleet.arch.clone(), fleet.device_type.clone());
        blocking(move || read_dockerfile(&dir, &spec, &service, &arch, &device_type)).await?
    };
    let text = resolve::fill_template(&text, &fleet.arch, &fleet.device_type);
    bases::check(&text, &spec.args)
        .map_err(|refused| BuildError::new(format!("{file}:{}: {}", refused.line, refused.why)))?;
    let prepared = dockerfile::prepare(&text, &builder_name(app), &platform(fleet), spec.target.as_deref());
    job.log.say(&format!("[{name}] building {file}"));
    if prepared.runs() && !engine.can_run(&fleet.arch) {
        return Err(emulation_missing(&file, &prepared, &engine.arch, &fleet.arch));
    }
    let tar = TempFile::make(scratch).map_err(BuildError::internal)?;
    let sent = {
        let (dir, out, text) = (context.join(&spec.context), tar.path().to_owned(), prepared.text.clone());
        let root = context.clone();
        blocking(move || pack(&root, &dir, &out, &text)).await?
    };
    job.log.say(&format!("  context {} files, {}", sent.0, size(sent.1)));
    let tag = format!(
        "{}{}/{}:latest",
        bases::OURS,
        builder_name(app),
        registry::repo_of(&fleet.slug, name.as_str())
    );
    let call = Call {
        service: name.as_str(),
        file: &file,
        dockerfile: &prepared,
        name: SENT_DOCKERFILE,
        tar: tar.path(),
        tag: &tag,
        args: &spec.args,
        labels: &spec.labels,
        target: spec.target.as_deref(),
        platform: &engine_platform(if prepared.only_scratch { &engine.arch } else { &fleet.arch }),
        nocache: job.request.options.nocache,
        memory: app.config.build.memory,
    };
    let id = engine.build(&call, &job.log).await?;
    let stored = keep(app, engine, scratch, fleet, name, &id, prepared.from_nothing).await;
    stored.map_err(|error| BuildError::new(format!("{file}: service {name}: {error}")))
}

fn emulation_missing(file: &str, prepared: &dockerfile::Prepared, builder: &str, arch: &str) -> BuildError {
    let line = prepared.steps.iter().find(|s| s.keyword == "RUN").map_or(0, |s| s.line);
    BuildError::new(format!(
        "{file}:{line}: RUN needs to run linux/{arch} programs, and the builder is linux/{builder} without emulation\n    \
         do: on the machine of the builder, once: apt-get install qemu-user-static binfmt-support"
    ))
}

/// The Dockerfile's path as its author knows it, and its text.
fn read_dockerfile(
    root: &Path,
    spec: &BuildSpec,
    service: &Name,
    arch: &str,
    device_type: &str,
) -> Result<(String, String), BuildError> {
    let shown =
        |file: &str| if spec.context == "." { file.to_owned() } else { format!("{}/{file}", spec.context) };
    let dir = root.join(&spec.context);
    let inside = std::fs::canonicalize(&dir)
        .ok()
        .zip(std::fs::canonicalize(root).ok())
        .is_some_and(|(dir, root)| dir.starts_with(root) && dir.is_dir());
    if !inside {
        return Err(BuildError::new(format!(
            "service {service}: its build context {:?} is not a folder of the project; correct `build:`, or commit the folder",
            spec.context
        )));
    }
    if let Some(text) = &spec.dockerfile_inline {
        return Ok((shown("dockerfile_inline"), text.clone()));
    }
    let file = match &spec.dockerfile {
        Some(file) => file.clone(),
        None => resolve::dockerfile(&top(&dir)?, arch, device_type)
            .map_err(|why| BuildError::new(format!("service {service}: {} : {why}", spec.context)))?,
    };
    let path = shown(&file);
    let text = context::read_text(root, &path, MAX_TEXT).map_err(|why| {
        BuildError::new(format!("service {service}: {why}; correct `dockerfile:`, or commit the file"))
    })?;
    if text.trim().is_empty() {
        return Err(BuildError::new(format!("{path}:1: the Dockerfile is empty; begin with FROM")));
    }
    Ok((path, text))
}

/// Packs a context for the builder, without what its `.dockerignore` leaves out; answers files and bytes.
fn pack(root: &Path, dir: &Path, out: &Path, dockerfile: &str) -> Result<(u64, u64), BuildError> {
    let ignore = if dir.join(".dockerignore").exists() {
        let path = dir.strip_prefix(root).unwrap_or(Path::new("")).join(".dockerignore");
        let path = path.to_str().unwrap_or(".dockerignore").trim_start_matches("./").to_owned();
        Ignore::parse(&context::read_text(root, &path, MAX_TEXT).map_err(BuildError::new)?)
            .map_err(BuildError::new)?
    } else {
        Ignore::default()
    };
    let mut tar = tar::Builder::new(BufWriter::with_capacity(
        256 << 10,
        std::fs::File::create(out).map_err(BuildError::internal)?,
    ));
    tar.follow_symlinks(false);
    tar.mode(tar::HeaderMode::Complete);
    let mut count = (0, 0);
    walk(dir, "", &ignore, &mut |full, path, meta| {
        if meta.is_file() {
            count = (count.0 + 1, count.1 + meta.len());
        }
        let mut header = tar::Header::new_gnu();
        header.set_metadata(meta);
        // Who owns files here says nothing about the image.
        header.set_uid(0);
        header.set_gid(0);
        if meta.is_symlink() {
            return tar.append_link(&mut header, path, std::fs::read_link(full)?);
        }
        if meta.is_dir() {
            return tar.append_data(&mut header, path, std::io::empty());
        }
        tar.append_data(&mut header, path, std::fs::File::open(full)?)
    })
    .map_err(|e| if ignore.exhausted() { BuildError::new(e.to_string()) } else { BuildError::internal(e) })?;
    let ours = format!("{SENT_DOCKERFILE}\n.dockerignore\n");
    for (name, text) in [(SENT_DOCKERFILE, dockerfile), (".dockerignore", ours.as_str())] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, text.as_bytes()).map_err(BuildError::internal)?;
    }
    tar.into_inner().and_then(|mut file| file.flush()).map_err(BuildError::internal)?;
    Ok(count)
}

/// Visits a folder in the order of names, so that equal folders are sent equally.
fn walk(
    dir: &Path,
    below: &str,
    ignore: &Ignore,
    visit: &mut dyn FnMut(&Path, &str, &std::fs::Metadata) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(std::io::Error::other(format!("the name {} is not UTF-8", entry.path().display())));
        };
        let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        if path == ".dockerignore" || path == ".git" {
            continue;
        }
        let meta = std::fs::symlink_metadata(entry.path())?;
        let out = ignore.ignores(&path);
        if ignore.exhausted() {
            return Err(std::io::Error::other(
                "the patterns of .dockerignore take too long to match; write fewer and simpler ones",
            ));
        }
        if !out {
            visit(&entry.path(), &path, &meta)?;
        }
        if meta.is_dir() && !(out && ignore.may_skip(&path)) {
            walk(&entry.path(), &path, ignore, visit)?;
        }
    }
    Ok(())
}

async fn one_pull(
    app: &App,
    job: &Job,
    engine: &Engine,
    scratch: &Path,
    name: &Name,
    reference: &str,
) -> Result<(image::Stored, Digest), BuildError> {
    let fleet = &job.request.fleet;
    // The engine is asked for what cannot be pulled, and it keeps what other fleets built.
    bases::image(reference).map_err(|why| BuildError::new(format!("service {name}: {why}")))?;
    job.log.say(&format!("[{name}] pulling {reference}"));
    // Without a tag the engine would pull every tag there is.
    let tagged =
        reference.contains('@') || reference.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let reference = if tagged { reference.to_owned() } else { format!("{reference}:latest") };
    let inspected = match engine.pull(&reference, &engine_platform(&fleet.arch), &job.log).await {
        Ok(()) => engine.inspect(&reference).await?,
        // Whoever keeps the server may have loaded it: a site without a network has no other way.
        Err(why) => match engine.held(&reference).await {
            Some(held) => {
                job.log.say(&format!(
                    "warning: {reference} cannot be pulled ({why}); taking the copy that the builder's engine holds"
                ));
                held
            }
            None => {
                return Err(BuildError::new(format!(
                    "service {name}: the image {reference} cannot be had: {why}\n    do: {}; or load it into the \
                     builder's engine (`docker load`)",
                    advice(&why)
                )));
            }
        },
    };
    let id = inspected.id.unwrap_or_default();
    // Where the engine does not say the repository's own digest, the config's names the same image.
    let pinned = repo_digest(&reference, &inspected.repo_digests.unwrap_or_default());
    let stored = keep(app, engine, scratch, fleet, name, &id, false)
        .await
        .map_err(|error| BuildError::new(format!("service {name}: {reference}: {error}")))?;
    let pinned = pinned.unwrap_or(stored.image.config_digest);
    job.log.say(&format!("  pinned to {pinned}"));
    Ok((stored, pinned))
}

/// The manifest's digest in the repository it was asked of: an image may have come from several, each with its own.
fn repo_digest(reference: &str, digests: &[String]) -> Option<Digest> {
    let name = reference.split('@').next().unwrap_or(reference);
    let name = match name.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => name,
    };
    let all = || digests.iter().filter_map(|d| d.split_once('@'));
    let own = all().find(|(repo, _)| familiar(repo) == familiar(name)).or_else(|| all().next());
    own.and_then(|(_, digest)| digest.parse().ok())
}

/// From the engine into the registry.
async fn keep(
    app: &App,
    engine: &Engine,
    scratch: &Path,
    fleet: &fleets::FleetRow,
    name: &Name,
    id: &str,
    from_nothing: bool,
) -> Result<image::Stored, BuildError> {
    let full = engine.inspect(id).await?.id.unwrap_or_default();
    let id: Digest = full.parse().map_err(BuildError::internal)?;
    let exported = TempFile::make(scratch).map_err(BuildError::internal)?;
    engine.export(&full, exported.path()).await?;
    image::store(
        app,
        &registry::repo_of(&fleet.slug, name.as_str()),
        exported.path(),
        &id,
        &fleet.arch,
        from_nothing,
    )
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(
            [size(0), size(999), size(1500), size(2_000_000), size(3_100_000_000)],
            ["0 B", "999 B", "1.5 kB", "2.0 MB", "3.1 GB"]
        );
    }

    #[test]
    fn an_image_is_pinned_to_the_digest_of_the_repository_it_was_asked_of() {
        let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
        let held: Vec<String> = [("mirror:5000/redis", "a"), ("redis", "b"), ("site.example/redis", "c")]
            .map(|(repo, letter)| format!("{repo}@{}", digest(letter)))
            .into();
        for (reference, letter) in [
            ("redis:7", "b"),
            ("docker.io/library/redis:7", "b"),
            ("mirror:5000/redis:7", "a"),
            ("mirror:5000/redis", "a"),
            ("site.example/redis@sha256:00", "c"),
            ("elsewhere/redis:7", "a"),
        ] {
            let got = repo_digest(reference, &held).map(|d| d.to_string());
            assert_eq!(got, Some(digest(letter)), "{reference}");
        }
        assert_eq!(repo_digest("redis:7", &[]), None);
    }

    #[test]
    fn a_packed_context_leaves_out_what_is_ignored_and_hides_our_dockerfile() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("web");
        std::fs::create_dir_all(dir.join("node_modules/x")).unwrap();
        std::fs::write(dir.join("node_modules/x/big"), "x").unwrap();
        std::fs::write(dir.join("index.html"), "hello").unwrap();
        std::fs::write(dir.join(".dockerignore"), "node_modules\n").unwrap();
        std::os::unix::fs::symlink("index.html", dir.join("link")).unwrap();
        let out = root.path().join("out.tar");
        assert_eq!(pack(root.path(), &dir, &out, "FROM scratch\n").unwrap(), (1, 5));
        let mut archive = tar::Archive::new(std::fs::File::open(&out).unwrap());
        let names: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["index.html", "link", ".copal.Dockerfile", ".dockerignore"]);
    }
}
