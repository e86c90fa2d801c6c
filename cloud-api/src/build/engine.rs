//! The engine that builds: the only place here that speaks to it. The classic builder, since BuildKit of Docker 20.10
//! needs a client session as soon as a base image must be pulled.

use std::{collections::HashMap, path::Path, time::Duration};

use bollard::{
    ClientVersion, Docker,
    models::{CreateImageInfo, ImageInspect},
    query_parameters::{
        BuildImageOptionsBuilder, CreateImageOptionsBuilder, ListImagesOptionsBuilder,
        RemoveImageOptionsBuilder,
    },
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::io::AsyncWriteExt as _;

use super::{
    BuildError,
    dockerfile::{Instruction, LABEL_BUILDER, Prepared},
    log::Log,
};

/// Every engine from 20.10 on speaks it, and answers in its terms.
const API: ClientVersion = ClientVersion { major_version: 1, minor_version: 41 };

/// How long the engine may take to begin an answer. A build's context is sent within it.
const ANSWER: Duration = Duration::from_secs(600);

/// What a build needs.
pub(super) struct Call<'a> {
    /// The service, for messages.
    pub(super) service: &'a str,
    /// The Dockerfile's path as its author knows it.
    pub(super) file: &'a str,
    pub(super) dockerfile: &'a Prepared,
    /// Its name in the tar.
    pub(super) name: &'a str,
    pub(super) tar: &'a Path,
    pub(super) tag: &'a str,
    pub(super) args: &'a std::collections::BTreeMap<String, String>,
    pub(super) labels: &'a std::collections::BTreeMap<String, String>,
    pub(super) target: Option<&'a str>,
    /// As the engine takes it: `linux/arm/v7`.
    pub(super) platform: &'a str,
    pub(super) nocache: bool,
    pub(super) memory: u64,
}

/// A connection.
pub(super) struct Engine {
    docker: Docker,
    /// `amd64`, `arm64`, `arm`.
    pub(super) arch: String,
    /// Name and version, for the build record.
    pub(super) name: String,
}

impl Engine {
    pub(super) async fn connect(host: &str) -> Result<Self, BuildError> {
        let down = |error: &dyn std::fmt::Display| {
            tracing::error!(%error, host, "the builder's engine does not answer");
            BuildError::new(format!(
                "the cloud's builder does not answer ({host}); its operator must start Docker there, or set `docker_host`"
            ))
        };
        let docker = Docker::connect_with_unix(host, ANSWER.as_secs(), &API).map_err(|e| down(&e))?;
        let version = tokio::time::timeout(Duration::from_secs(10), docker.version())
            .await
            .map_err(|e| down(&e))?
            .map_err(|e| down(&e))?;
        let arch = version.arch.unwrap_or_default();
        let name = format!("docker {}", version.version.unwrap_or_default());
        Ok(Self { docker, arch, name })
    }

    /// Whether it runs programs of this architecture, natively or by emulation.
    pub(super) fn can_run(&self, arch: &str) -> bool {
        if self.arch == arch || (self.arch == "arm64" && arch == "arm") {
            return true;
        }
        let qemu = match arch {
            "arm64" => "qemu-aarch64",
            "amd64" => "qemu-x86_64",
            other => return emulated(&format!("qemu-{other}")),
        };
        emulated(qemu)
    }

    /// Builds one image and answers its id. Dropping the future ends the build in the engine.
    pub(super) async fn build(&self, call: &Call<'_>, log: &Log) -> Result<String, BuildError> {
        let error = match self.attempt(call, log).await {
            Err(error) if !call.nocache => error,
            result => return result,
        };
        let Some(why) = cache_is_to_blame(&error.0) else { return Err(error) };
        log.say(&format!("  {why}; building anew"));
        self.attempt(&Call { nocache: true, ..*call }, log).await
    }

    async fn attempt(&self, call: &Call<'_>, log: &Log) -> Result<String, BuildError> {
        let args: HashMap<String, String> = call.args.clone().into_iter().collect();
        let labels: HashMap<String, String> = call.labels.clone().into_iter().collect();
        let memory = i32::try_from(call.memory).unwrap_or(i32::MAX);
        let mut options = BuildImageOptionsBuilder::new()
            .dockerfile(call.name)
            .t(call.tag)
            .rm(true)
            .forcerm(true)
            .nocache(call.nocache)
            .memory(memory)
            .memswap(memory)
            .platform(call.platform)
            .buildargs(&args)
            .target(call.target.unwrap_or(""));
        if !labels.is_empty() {
            options = options.labels(&labels);
        }
        let file = tokio::fs::File::open(call.tar).await.map_err(BuildError::internal)?;
        let body = bollard::body_try_stream(tokio_util::io::ReaderStream::with_capacity(file, 128 << 10));
        let mut stream = self.docker.build_image(options.build(), None, Some(body));
        let mut steps = Steps { call, log, current: None, cached: 0, ran: 0 };
        let mut image = None;
        while let Some(message) = stream.next().await {
            let message = message.map_err(|error| steps.failed(&plain(&error)))?;
            if let Some(detail) = message.error_detail {
                return Err(steps.failed(&detail.message.unwrap_or_default()));
            }
            if let Some(text) = message.stream {
                steps.output(&text);
            } else if let (None, Some(status)) = (&message.progress_detail, message.status) {
                log.say(&format!("    {status}"));
            }
            if let Some(id) = message.aux.and_then(|aux| aux.id) {
                image = Some(id);
            }
        }
        steps.summary();
        image.ok_or_else(|| steps.failed("the builder ended without an image"))
    }

    /// Pulls an image for a platform.
    pub(super) async fn pull(&self, reference: &str, platform: &str, log: &Log) -> Result<(), String> {
        let options = CreateImageOptionsBuilder::new().from_image(reference).platform(platform).build();
        let mut stream = self.docker.create_image(Some(options), None, None);
        while let Some(message) = stream.next().await {
            let CreateImageInfo { error_detail, status, progress_detail, .. } =
                message.map_err(|error| plain(&error))?;
            if let Some(detail) = error_detail {
                return Err(detail.message.unwrap_or_default());
            }
            if let (None, Some(status)) = (progress_detail, status) {
                log.say(&format!("    {status}"));
            }
        }
        Ok(())
    }

    pub(super) async fn inspect(&self, image: &str) -> Result<ImageInspect, BuildError> {
        self.docker.inspect_image(image).await.map_err(|e| BuildError::internal(plain(&e)))
    }

    /// The image the engine holds under exactly this name and tag. An id is no name: by one, a project could take what
    /// was built for another fleet.
    pub(super) async fn held(&self, reference: &str) -> Option<ImageInspect> {
        let found = self.docker.inspect_image(reference).await.ok()?;
        let named = found.repo_tags.iter().flatten().any(|tag| familiar(tag) == familiar(reference));
        named.then_some(found)
    }

    /// Writes the image, as `docker save` does, into a file.
    pub(super) async fn export(&self, image: &str, file: &Path) -> Result<(), BuildError> {
        let mut out = tokio::fs::File::create(file).await.map_err(BuildError::internal)?;
        let mut stream = self.docker.export_image(image);
        while let Some(chunk) = stream.try_next().await.map_err(|e| BuildError::internal(plain(&e)))? {
            out.write_all(&chunk).await.map_err(BuildError::internal)?;
        }
        out.flush().await.map_err(BuildError::internal)
    }

    /// Removes what builds of this server left: images without a name that nothing stands on.
    pub(super) async fn prune(&self, builder: &str) {
        let filters = HashMap::from([
            ("dangling".to_owned(), vec!["true".to_owned()]),
            ("label".to_owned(), vec![format!("{LABEL_BUILDER}={builder}")]),
        ]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let images = self.docker.list_images(Some(options)).await.unwrap_or_default();
        for image in images {
            // In use by a container, or already gone with another: either is fine.
            let options = RemoveImageOptionsBuilder::new().force(false).build();
            if let Err(error) = self.docker.remove_image(&image.id, Some(options), None).await {
                tracing::debug!(image = image.id, error = plain(&error), "left a dangling image");
            }
        }
    }
}

/// What is wrong with the engine's cache, where a build failed by it and may go well without.
fn cache_is_to_blame(error: &str) -> Option<&'static str> {
    // It does not tell platforms apart, so it may hold the same files for another.
    if error.contains("does not match the specified platform") {
        return Some("the cache is of another platform");
    }
    // What a step found in it may be removed before the next one begins: by a device on the same engine, or by a person. The engine
    // looks through all images for what it could use, and fails where any of them goes meanwhile.
    ["No such image: sha256:", "unable to find image \"sha256:"]
        .iter()
        .any(|words| error.contains(words))
        .then_some("what the cache held was removed meanwhile")
}

fn emulated(name: &str) -> bool {
    std::fs::read_to_string(format!("/proc/sys/fs/binfmt_misc/{name}"))
        .is_ok_and(|text| text.lines().next() == Some("enabled"))
}

/// The engine's own sentence, without the client library's wrapping.
fn plain(error: &bollard::errors::Error) -> String {
    match error {
        bollard::errors::Error::DockerResponseServerError { message, .. } => message.clone(),
        bollard::errors::Error::DockerStreamError { error } => error.clone(),
        other => other.to_string(),
    }
}

/// Turns the builder's output into lines that name file and line.
struct Steps<'a> {
    call: &'a Call<'a>,
    log: &'a Log,
    current: Option<&'a Instruction>,
    cached: usize,
    ran: usize,
}

impl Steps<'_> {
    fn output(&mut self, text: &str) {
        for line in text.lines() {
            if let Some(number) = step(line) {
                self.current = self.call.dockerfile.steps.get(number - 1);
                if let Some(instruction) = self.current.filter(|i| !i.ours) {
                    self.ran += 1;
                    let text: String = instruction.text.chars().take(160).collect();
                    self.log.say(&format!("  {}:{}  {text}", self.call.file, instruction.line));
                }
                continue;
            }
            if self.current.is_some_and(|i| i.ours) {
                continue;
            }
            let word = line.trim();
            if word == "---> Using cache" {
                self.cached += 1;
            }
            let noise = word.is_empty()
                || word.starts_with("--->")
                || word.starts_with("Removing intermediate container ")
                || word.starts_with("Successfully built ")
                || word.starts_with("Successfully tagged ");
            if !noise {
                self.log.say(&format!("    {line}"));
            }
        }
    }

    fn summary(&self) {
        self.log.say(&format!("  {} steps, {} from the cache", self.ran, self.cached));
    }

    fn failed(&self, message: &str) -> BuildError {
        // A parse error counts lines of what was sent.
        let (line, message) = match parse_error(message) {
            Some((sent, rest)) => (Some(self.call.dockerfile.line(sent)), rest.to_owned()),
            None => (self.current.map(|i| i.line), message.trim().to_owned()),
        };
        let place =
            line.map_or_else(|| self.call.file.to_owned(), |line| format!("{}:{line}", self.call.file));
        let what = self.current.filter(|_| line.is_some()).map_or(String::new(), |i| {
            let text: String = i.text.chars().take(160).collect();
            format!("{text}\n    ")
        });
        BuildError::new(format!(
            "{place}: {what}{message}\n    service {}; do: {}",
            self.call.service,
            advice(&message)
        ))
    }
}

/// The number of `Step 3/7 : …`.
fn step(line: &str) -> Option<usize> {
    line.strip_prefix("Step ")?.split_once('/')?.0.parse().ok().filter(|n| *n > 0)
}

/// A name as the engine shows it: without the registry and folder that go without saying.
pub(super) fn familiar(reference: &str) -> &str {
    let path = reference.strip_prefix("docker.io/").unwrap_or(reference);
    path.strip_prefix("library/").unwrap_or(path)
}

/// `dockerfile parse error line 3: unknown instruction: FORM`, in its spellings.
fn parse_error(message: &str) -> Option<(usize, &str)> {
    let lower = message.to_ascii_lowercase();
    let at = lower.find("parse error").and_then(|from| Some(from + lower[from..].find("line ")? + 5))?;
    let rest = message.get(at..)?;
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    Some((rest.get(..digits)?.parse().ok()?, rest.get(digits..)?.trim_start_matches([':', ' '])))
}

/// The next step for whoever pushed.
pub(super) fn advice(message: &str) -> &'static str {
    let lower = message.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| lower.contains(w));
    if has(&["exec format error"]) {
        "the program is for another architecture; use one for the fleet's, or a base image that has it"
    } else if has(&["copy failed", "add failed", "no such file or directory", "not found in build context"]) {
        "check that the file is committed and that .dockerignore does not leave it out"
    } else if has(&[
        "no such host",
        "i/o timeout",
        "connection refused",
        "network is unreachable",
        "tls handshake",
        "request canceled",
    ]) {
        "the builder cannot reach the registry; check its network, or build FROM scratch with what is in the repository"
    } else if has(&[
        "manifest unknown",
        "not found: manifest",
        "pull access denied",
        "repository does not exist",
        "manifest for",
        "no matching manifest",
    ]) {
        "check the image's name and tag, and that it exists for the fleet's architecture"
    } else if has(&["unknown instruction", "syntax error", "requires"]) {
        "correct the instruction"
    } else if has(&["returned a non-zero code: 137"]) {
        "it was killed, most likely for using more memory than a build may (`build.memory` in the cloud's settings)"
    } else if has(&["returned a non-zero code"]) {
        "the lines above are what the command printed; correct it, commit and push again"
    } else {
        "correct it, commit and push again"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_errors_give_their_line() {
        assert_eq!(
            parse_error("dockerfile parse error line 3: unknown instruction: FORM"),
            Some((3, "unknown instruction: FORM"))
        );
        assert_eq!(parse_error("Dockerfile parse error on line 12: x"), Some((12, "x")));
        assert_eq!(parse_error("something else on line 3"), None);
        assert_eq!(step("Step 3/7 : COPY a b"), Some(3));
        assert_eq!(step("Step by step"), None);
    }

    #[test]
    fn a_failure_of_the_cache_is_told_from_one_of_the_project() {
        let gone =
            "Dockerfile:3: RUN make\n    No such image: sha256:b0f2142216bb1f318738fc9536b1339cd0ddc7d11cb3";
        assert_eq!(cache_is_to_blame(gone), Some("what the cache held was removed meanwhile"));
        let another =
            "Dockerfile:1: LABEL io.copal.build=d4c9\n    unable to find image \"sha256:eca879141590\"";
        assert_eq!(cache_is_to_blame(another), Some("what the cache held was removed meanwhile"));
        let other = "image with reference sha256:77 was found but does not match the specified platform: wanted linux/arm64";
        assert_eq!(cache_is_to_blame(other), Some("the cache is of another platform"));
        for own in ["No such image: nginx:1", "The command '/bin/sh -c make' returned a non-zero code: 2"] {
            assert_eq!(cache_is_to_blame(own), None, "{own}");
        }
    }

    #[test]
    fn a_name_is_the_same_with_what_goes_without_saying() {
        for spelled in ["docker.io/library/nginx:1", "library/nginx:1", "nginx:1"] {
            assert_eq!(familiar(spelled), "nginx:1");
        }
        assert_eq!(familiar("registry.example/library/nginx:1"), "registry.example/library/nginx:1");
    }
}
