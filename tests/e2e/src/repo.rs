//! A project as its developer has it: a git repository, pushed by the real client.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

use crate::cloud::Cloud;

/// A repository with a remote `copal`.
pub struct Repo {
    pub dir: TempDir,
}

impl Repo {
    pub fn new(cloud: &Cloud, fleet: &str) -> Self {
        let repo = Self { dir: TempDir::new().unwrap() };
        repo.git(&["init", "-q", "-b", "main"]);
        repo.git(&["config", "user.name", "Anna"]);
        repo.git(&["config", "user.email", "anna@example.org"]);
        let url = cloud.url.replacen("://", &format!("://anna:{}@", cloud.token), 1);
        if cloud.pin.is_some() {
            let authority = cloud.dir.path().join("tls/ca.crt");
            repo.git(&["config", "http.sslCAInfo", authority.to_str().unwrap()]);
        }
        repo.git(&["remote", "add", "copal", &format!("{url}/git/{fleet}.git")]);
        repo
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub fn write(&self, file: &str, content: impl AsRef<[u8]>) -> &Self {
        let file = self.dir.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
        self
    }

    /// Puts a static busybox where a `FROM scratch` image can take it.
    pub fn add_busybox(&self, folder: &str) -> &Self {
        self.write(&format!("{folder}/busybox"), fs::read("/bin/busybox").unwrap());
        let file = self.dir.path().join(folder).join("busybox");
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    pub fn git(&self, args: &[&str]) -> String {
        let output = self.try_git(args);
        assert!(output.status.success(), "git {args:?}: {}", crate::text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn try_git(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            // Of this machine, and stronger than what a test configures.
            .env_remove("GIT_SSL_CAINFO")
            .env("HOME", self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Commits everything and pushes; gives what the pusher saw.
    pub async fn push(&self, message: &str) -> Output {
        self.commit(message);
        self.push_args(&["copal", "HEAD:main"]).await
    }

    /// Pushes and expects it to be taken.
    pub async fn push_ok(&self, message: &str) -> String {
        let output = self.push(message).await;
        assert!(output.status.success(), "push: {}", crate::text(&output));
        crate::text(&output)
    }

    pub async fn push_args(&self, args: &[&str]) -> Output {
        let mut command = self.command(&["push"]);
        command.args(args);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }
}

/// A compose project of `FROM scratch` services made of busybox; each runs a shell line.
pub struct Services<'a> {
    pub services: &'a [(&'a str, &'a str, &'a str)],
}

impl Services<'_> {
    /// Writes `docker-compose.yml` and one folder a service: (name, shell line, more compose lines).
    pub fn write_to(&self, repo: &Repo) {
        let mut compose = String::from("services:\n");
        let mut volumes = false;
        for (name, line, more) in self.services {
            repo.add_busybox(name);
            repo.write(&format!("{name}/run.sh"), format!("#!/bin/busybox sh\n{line}\n"));
            fs::set_permissions(
                Path::new(&repo.path()).join(name).join("run.sh"),
                fs::Permissions::from_mode(0o755),
            )
            .unwrap();
            repo.write(
                &format!("{name}/Dockerfile"),
                "FROM scratch\nCOPY busybox /bin/busybox\nCOPY run.sh /run.sh\nCMD [\"/bin/busybox\", \"sh\", \"/run.sh\"]\n",
            );
            compose.push_str(&format!("  {name}:\n    build: ./{name}\n"));
            for line in more.lines().filter(|l| !l.trim().is_empty()) {
                compose.push_str(&format!("    {line}\n"));
                volumes |= line.contains("data:");
            }
        }
        if volumes {
            compose.push_str("volumes:\n  data: {}\n");
        }
        repo.write("docker-compose.yml", compose);
    }
}

/// A shell line that stays and ends at once when asked.
pub const STAY: &str = "trap 'exit 0' TERM; while :; do /bin/busybox sleep 1 & wait $!; done";
