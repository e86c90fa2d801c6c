//! Which file of a folder describes it, and the words that a template may hold. Pure: over a list of file names.

/// Compose files, in the order they are looked for.
pub const COMPOSE_FILES: [&str; 4] =
    ["docker-compose.yml", "docker-compose.yaml", "compose.yml", "compose.yaml"];

/// How a folder is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProjectFile {
    /// Many services, by this compose file.
    Compose(String),
    /// One service, by this Dockerfile.
    Dockerfile(String),
}

/// Finds the file that describes a project: a compose file, else a Dockerfile. `files` are names at the top of the
/// folder (deeper paths are looked past).
///
/// # Errors
/// A message that says what was looked for and what to do, when there is none.
pub fn project<S: AsRef<str>>(files: &[S], arch: &str, device_type: &str) -> Result<ProjectFile, String> {
    if let Some(name) = COMPOSE_FILES.iter().find(|name| files.iter().any(|f| f.as_ref() == **name)) {
        return Ok(ProjectFile::Compose((*name).to_owned()));
    }
    dockerfile(files, arch, device_type).map(ProjectFile::Dockerfile).map_err(|_| {
        format!(
            "the project has neither a compose file ({}) nor a Dockerfile ({}) at its top; \
             add one of them, commit and push again",
            COMPOSE_FILES.join(", "),
            dockerfiles(arch, device_type).join(", "),
        )
    })
}

/// Finds the Dockerfile of a build's context: the one for the device type, for the architecture, the template, the
/// plain one.
///
/// # Errors
/// A message that says what was looked for, when there is none.
pub fn dockerfile<S: AsRef<str>>(files: &[S], arch: &str, device_type: &str) -> Result<String, String> {
    let candidates = dockerfiles(arch, device_type);
    candidates.iter().find(|name| files.iter().any(|f| f.as_ref() == name.as_str())).cloned().ok_or_else(
        || {
            format!(
                "there is no Dockerfile in it (looked for {}); add one, or name it by `dockerfile:`",
                candidates.join(", ")
            )
        },
    )
}

/// The Dockerfiles looked for, first wins.
#[must_use]
pub fn dockerfiles(arch: &str, device_type: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for suffix in [device_type, arch, balena_arch(arch), "template"] {
        let name = format!("Dockerfile.{suffix}");
        if !suffix.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names.push("Dockerfile".to_owned());
    names
}

/// Replaces `%%COPAL_ARCH%%` and `%%COPAL_DEVICE_TYPE%%` (and Balena's spellings) in a Dockerfile or compose file.
#[must_use]
pub fn fill_template(text: &str, arch: &str, device_type: &str) -> String {
    if !text.contains("%%") {
        return text.to_owned();
    }
    text.replace("%%COPAL_ARCH%%", arch)
        .replace("%%COPAL_DEVICE_TYPE%%", device_type)
        .replace("%%BALENA_ARCH%%", balena_arch(arch))
        .replace("%%BALENA_MACHINE_NAME%%", device_type)
}

/// The architecture as Balena spells it, for projects that come from there.
#[must_use]
pub fn balena_arch(arch: &str) -> &str {
    match arch {
        "arm64" => "aarch64",
        "arm" => "armv7hf",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(files: &[&str]) -> Result<ProjectFile, String> {
        project(files, "arm64", "raspberrypi4-64")
    }

    #[test]
    fn the_most_particular_file_wins() {
        let mut files = vec![
            "docker-compose.yml",
            "docker-compose.yaml",
            "compose.yml",
            "compose.yaml",
            "Dockerfile.raspberrypi4-64",
            "Dockerfile.arm64",
            "Dockerfile.aarch64",
            "Dockerfile.template",
            "Dockerfile",
        ];
        while let Some(first) = files.first().copied() {
            let mut shuffled = files.clone();
            shuffled.reverse();
            let want = if first.starts_with("Dockerfile") {
                ProjectFile::Dockerfile(first.to_owned())
            } else {
                ProjectFile::Compose(first.to_owned())
            };
            assert_eq!(find(&shuffled), Ok(want));
            files.remove(0);
        }
    }

    #[test]
    fn a_folder_without_any_says_what_was_looked_for() {
        let message = find(&["README.md", "sub/Dockerfile", "Dockerfile.amd64"]).unwrap_err();
        assert!(message.contains("docker-compose.yml") && message.contains("Dockerfile.arm64"), "{message}");
    }

    #[test]
    fn templates_are_filled() {
        let text = "FROM %%COPAL_ARCH%%/x:%%BALENA_ARCH%% # %%COPAL_DEVICE_TYPE%% %%OTHER%%";
        assert_eq!(fill_template(text, "arm64", "pi"), "FROM arm64/x:aarch64 # pi %%OTHER%%");
    }
}
