//! A project as it is pushed, to the normalised spec a release carries.
//!
//! In: the text of a compose file (or the fact that there is only a Dockerfile), the fleet's architecture and device
//! type, the owner's policy. Out: a [`Project`], or every [`Problem`] with file, line and what to do about it.
//! Equal meaning gives equal bytes, whatever the spelling and order of the file.
//! Never here: files, network, environment; what is read besides the text comes through [`Options::files`].
//!
//! | room | what it does |
//! |---|---|
//! | `tree` | YAML to nodes that know their place |
//! | `interpolate` | `${VARIABLES}` |
//! | `keys` | every key of compose and what becomes of it; `docs/compose.md` is this table |
//! | `read` | scalars, lists, maps, sizes, times |
//! | `service` | one service |
//! | `build` | `build:` |
//! | `toplevel` | `volumes:` and `networks:` |
//! | `check` | what concerns several services: references, cycles, ports |
//! | `policy` | what the owner allows, at the line that asks for it |
//! | [`resolve`] | which file of a folder describes it |
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use copal_protocol::{
    documents::Policy,
    ids::Name,
    spec::{NetworkSpec, ServiceSpec, VolumeSpec},
};
use serde::Serialize;

mod build;
mod check;
mod interpolate;
mod keys;
mod policy;
mod problem;
mod read;
pub mod resolve;
mod service;
mod toplevel;
mod tree;

pub use build::BuildSpec;
pub use keys::markdown as keys_markdown;
pub use problem::{Problem, code};
pub use tree::MAX_FILE;

use problem::Problems;

/// Services of a project at most.
pub const MAX_SERVICES: usize = 100;

/// Reads a file of the project: its path below the project's folder to its text, or why not. The caller bounds what
/// it reads to [`MAX_FILE`] bytes and follows no symbolic link out of the folder.
pub type FileLoader<'a> = &'a dyn Fn(&str) -> Result<String, String>;

/// What a project is read for.
#[derive(Clone)]
pub struct Options<'a> {
    /// How messages name the file.
    pub file_name: &'a str,
    /// The fleet's architecture as OCI spells it: `amd64`, `arm64`, `arm`.
    pub arch: &'a str,
    /// The fleet's device type, such as `raspberrypi4-64`.
    pub device_type: &'a str,
    /// Profiles chosen; `*` chooses all.
    pub profiles: BTreeSet<String>,
    /// Variables for `${…}` beside `COPAL_ARCH` and `COPAL_DEVICE_TYPE`.
    pub vars: BTreeMap<String, String>,
    /// The owner's policy; with it, what it denies is a problem at the line that asks.
    pub allow: Option<&'a Policy>,
    /// Where `env_file` reads from; without it `env_file` is refused.
    pub files: Option<FileLoader<'a>>,
}

impl<'a> Options<'a> {
    /// Options with nothing chosen but what every caller knows.
    #[must_use]
    pub fn new(file_name: &'a str, arch: &'a str, device_type: &'a str) -> Self {
        Self {
            file_name,
            arch,
            device_type,
            profiles: BTreeSet::new(),
            vars: BTreeMap::new(),
            allow: None,
            files: None,
        }
    }

    fn variables(&self) -> BTreeMap<String, String> {
        let mut vars = self.vars.clone();
        for (name, value) in [
            ("COPAL_ARCH", self.arch),
            ("COPAL_DEVICE_TYPE", self.device_type),
            ("BALENA_ARCH", resolve::balena_arch(self.arch)),
            ("BALENA_MACHINE_NAME", self.device_type),
        ] {
            vars.insert(name.to_owned(), value.to_owned());
        }
        vars
    }
}

/// A project, normalised.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Project {
    /// By name; at least one.
    pub services: BTreeMap<Name, Service>,
    /// Named volumes.
    pub volumes: BTreeMap<Name, VolumeSpec>,
    /// Networks; `default` is implied where a service names none.
    pub networks: BTreeMap<Name, NetworkSpec>,
    /// What has no effect or is probably not meant, for whoever pushes.
    pub warnings: Vec<Problem>,
}

/// A service: how its image comes to be, and how it is run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Service {
    /// How its image is built; wins over `image`.
    pub build: Option<BuildSpec>,
    /// The image it uses where it is not built.
    pub image: Option<String>,
    /// How it is run.
    pub spec: ServiceSpec,
    /// Variables that the cloud may set even where the owner's policy says `declared`.
    pub overridable_env: BTreeSet<String>,
}

/// Reads a compose file.
///
/// # Errors
/// Every problem of the file (at most 100), sorted by line.
pub fn parse(text: &str, options: &Options<'_>) -> Result<Project, Vec<Problem>> {
    let mut problems = Problems::new(options.file_name);
    let text = resolve::fill_template(text, options.arch, options.device_type);
    let project = tree::read(&text, &mut problems).map(|mut root| {
        interpolate::interpolate(&mut root, &options.variables(), &mut problems);
        let project = project(&root, options, &mut problems);
        check::check(&root, &project, &mut problems);
        if let Some(policy) = options.allow {
            policy::check(&root, &project, policy, &mut problems);
        }
        project
    });
    match (project, problems.finish()) {
        (Some(project), (problems, warnings)) if problems.is_empty() => Ok(Project { warnings, ..project }),
        (_, (problems, _)) => Err(problems),
    }
}

/// The project of a folder that has a Dockerfile only: one service, `main`.
#[must_use]
pub fn single(build: BuildSpec) -> Project {
    let main: Name = "main".parse().expect("`main` is a name");
    let service = Service {
        build: Some(build),
        image: None,
        spec: ServiceSpec::default(),
        overridable_env: BTreeSet::new(),
    };
    Project {
        services: BTreeMap::from([(main, service)]),
        volumes: BTreeMap::new(),
        networks: BTreeMap::new(),
        warnings: Vec::new(),
    }
}

fn project(root: &tree::Node, options: &Options<'_>, p: &mut Problems) -> Project {
    let mut project = Project {
        services: BTreeMap::new(),
        volumes: BTreeMap::new(),
        networks: BTreeMap::new(),
        warnings: Vec::new(),
    };
    let mut left_out = BTreeSet::new();
    for entry in read::map(root, p) {
        if entry.name == "x-copal" {
            p.at(&entry.key, code::UNKNOWN_KEY, "belongs to a service", "write it under `services: <name>:`");
            continue;
        }
        if !keys::admit(&keys::TOP, entry, p) {
            continue;
        }
        match entry.name.as_str() {
            "volumes" => project.volumes = toplevel::volumes(&entry.node, p),
            "networks" => project.networks = toplevel::networks(&entry.node, p),
            _ => {
                let entries = read::map(&entry.node, p);
                if entries.len() > MAX_SERVICES {
                    p.at(
                        &entry.key,
                        code::LIMIT,
                        format!("has {} services; at most {MAX_SERVICES} are possible", entries.len()),
                        "split the project over several fleets",
                    );
                }
                for entry in entries.iter().take(MAX_SERVICES).filter(|e| !e.name.starts_with("x-")) {
                    let Some(name) = read::name(&entry.name, &entry.key, p) else { continue };
                    match service::read(&entry.key, &entry.node, options, p) {
                        Some(service) => drop(project.services.insert(name, service)),
                        None => drop(left_out.insert(name)),
                    }
                }
            }
        }
    }
    if project.services.is_empty() && p.list.is_empty() {
        if left_out.is_empty() {
            p.whole(code::MISSING, "has no services", "write `services:` with at least one service below it");
        } else {
            p.whole(
                code::MISSING,
                "leaves no service: all of them have profiles, and none of those is chosen",
                "remove `profiles:` from those that devices should run",
            );
        }
    }
    // What waits optionally for a service that its profile leaves out does not wait.
    for service in project.services.values_mut() {
        service.spec.depends_on.retain(|name, dependency| !(dependency.optional && left_out.contains(name)));
    }
    project
}
