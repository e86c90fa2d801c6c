//! `build:`: how an image comes to be.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    Options, keys,
    problem::{Problems, code},
    read,
    tree::{Node, Value},
};

/// How an image is built. Paths are below the project's folder and cannot climb out of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BuildSpec {
    /// The folder sent to the builder, such as `web`; `.` for the project's own.
    pub context: String,
    /// The Dockerfile's path below the context; absent: chosen there as [`crate::resolve::dockerfile`] does.
    pub dockerfile: Option<String>,
    /// The Dockerfile's text, instead of a file.
    pub dockerfile_inline: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// The stage to stop at.
    pub target: Option<String>,
    /// Labels of the image.
    pub labels: BTreeMap<String, String>,
}

pub(crate) fn read(node: &Node, options: &Options<'_>, p: &mut Problems) -> BuildSpec {
    let mut build = BuildSpec { context: ".".to_owned(), ..BuildSpec::default() };
    if matches!(node.value, Value::Scalar(_)) {
        build.context = context(node, p).unwrap_or_default();
        return build;
    }
    for entry in read::map(node, p) {
        if !keys::admit(&keys::BUILD, entry, p) {
            continue;
        }
        let value = &entry.node;
        match entry.name.as_str() {
            "context" => build.context = context(value, p).unwrap_or_default(),
            "dockerfile" => {
                build.dockerfile = read::parsed(value, p, "a file below the build's context", |t| {
                    read::relative_path(t).filter(|path| path != ".")
                });
            }
            "dockerfile_inline" => build.dockerfile_inline = read::word(value, p).map(str::to_owned),
            "target" => build.target = read::word(value, p).map(str::to_owned),
            "labels" => build.labels = read::pair_map(value, p),
            "args" => build.args = args(value, p),
            "platforms" => {
                for item in read::list(value, p) {
                    platform(item, options, p);
                }
            }
            _ => p.at(&entry.key, code::UNSUPPORTED, "cannot be honoured here", "remove it"),
        }
    }
    if build.dockerfile.is_some() && build.dockerfile_inline.is_some() {
        p.at(node, code::CONFLICT, "has both `dockerfile` and `dockerfile_inline`", "keep one of the two");
    }
    build
}

fn context(node: &Node, p: &mut Problems) -> Option<String> {
    let text = read::word(node, p)?;
    if text.contains("://") || text.starts_with("git@") {
        p.at(
            node,
            code::UNSUPPORTED,
            "a build fetches no other repository: what is built is what was pushed",
            "copy it into this repository (submodules are refused too)",
        );
        return None;
    }
    let path = read::relative_path(text);
    if path.is_none() {
        p.at(
            node,
            code::INVALID,
            format!("`{}` is outside the project", read::shown(text)),
            "use a folder below the one that holds the compose file",
        );
    }
    path
}

fn args(node: &Node, p: &mut Problems) -> BTreeMap<String, String> {
    for (key, value, at) in read::pairs(node, p) {
        if value.is_none() {
            p.at(
                at,
                code::MISSING,
                format!("the build argument {} has no value: the builder has no environment of yours to take it from", read::shown(&key)),
                "give it a value (`ARG: value`, or `ARG=` for an empty one)",
            );
        }
    }
    read::pair_map(node, p)
}

/// Checks that `linux/<arch>` is the fleet's.
pub(crate) fn platform(node: &Node, options: &Options<'_>, p: &mut Problems) {
    let Some(text) = read::word(node, p) else { return };
    let mut parts = text.split('/');
    let fits =
        parts.next() == Some("linux") && parts.next().is_some_and(|arch| resolve_arch(arch) == options.arch);
    if !fits {
        p.at(
            node,
            code::UNSUPPORTED,
            format!("asks for {}, and the fleet's devices are linux/{}", read::shown(text), options.arch),
            "remove it: an image is built for the fleet's architecture",
        );
    }
}

fn resolve_arch(word: &str) -> &str {
    match word {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armhf" | "armv7" => "arm",
        other => other,
    }
}
