//! Folders a service shares with the agent: its update lock, its hand-over word, its secrets.
//!
//! What is in the lock folder is written by containers, perhaps as root, perhaps with malice: nothing there is followed
//! (symlinks), waited for (pipes) or trusted beyond "someone holds this lock".

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use copal_protocol::ids::{AppId, Name};
use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::plan::wanted::{HANDOVER_FILE, WantedService};

/// The file a service holds a lock on while it must not be stopped.
pub const LOCK_FILE: &str = "update.lock";

/// Where the folders are.
#[derive(Debug, Clone)]
pub struct Shared {
    run_dir: PathBuf,
}

/// The answer to asking for a lock.
#[derive(Debug)]
pub enum Locked {
    /// It is ours until dropped.
    Ours(Option<Flock<File>>),
    /// The service holds it.
    Theirs,
}

impl Shared {
    /// Names the agent's run folder.
    #[must_use]
    pub fn new(run_dir: PathBuf) -> Self {
        Self { run_dir }
    }

    /// Host side of the folder bound to `/run/copal`.
    #[must_use]
    pub fn folder(&self, app: AppId, service: &Name) -> PathBuf {
        self.run_dir.join("locks").join(app.to_string()).join(service.as_str())
    }

    /// Host side of the folder bound to `/run/secrets`. One for each configuration, so that the old container's secrets
    /// do not change under it.
    #[must_use]
    pub fn secrets(&self, app: AppId, service: &Name, hash: &str) -> PathBuf {
        let short: String = hash.chars().filter(char::is_ascii_alphanumeric).take(24).collect();
        self.secrets_root(app, service).join(short)
    }

    fn secrets_root(&self, app: AppId, service: &Name) -> PathBuf {
        self.run_dir.join("secrets").join(app.to_string()).join(service.as_str())
    }

    /// Makes what a container of the service needs, where it is not there (after a boot, everything).
    ///
    /// # Errors
    /// As the file system says.
    pub fn prepare(&self, app: AppId, name: &Name, service: &WantedService) -> io::Result<()> {
        let folder = self.folder(app, name);
        fs::create_dir_all(&folder)?;
        // Others on the host hold no locks; containers get the folder itself.
        fs::set_permissions(self.run_dir.join("locks"), fs::Permissions::from_mode(0o700))?;
        // Whatever user the service runs as may leave its hand-over word here; nobody may remove another's file.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777))?;
        let lock = folder.join(LOCK_FILE);
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&lock);
        match made {
            // Whatever user the service runs as may lock it.
            Ok(file) => file.set_permissions(fs::Permissions::from_mode(0o666))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        if !service.secrets.is_empty() {
            self.write_secrets(app, name, service)?;
        }
        Ok(())
    }

    /// Files 0444 in a folder 0755 below one that only root enters: readable to any user of the container, to nobody on
    /// the host.
    fn write_secrets(&self, app: AppId, name: &Name, service: &WantedService) -> io::Result<()> {
        let top = self.run_dir.join("secrets");
        if !top.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&top)?;
        }
        fs::set_permissions(&top, fs::Permissions::from_mode(0o700))?;
        let folder = self.secrets(app, name, &service.hash);
        // Modes are set, not asked for: the agent may run under a strict umask.
        fs::create_dir_all(&folder)?;
        for path in
            [&self.run_dir.join("secrets").join(app.to_string()), &self.secrets_root(app, name), &folder]
        {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        for (secret, value) in &service.secrets {
            if !plain_name(secret) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("secret {secret:?} of service {name} has no name a file can have"),
                ));
            }
            let path = folder.join(secret);
            if fs::read(&path).is_ok_and(|old| old == value.0) {
                continue;
            }
            let temp = folder.join(format!(".{secret}.new"));
            let _ = fs::remove_file(&temp);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&temp)?;
            file.write_all(&value.0)?;
            file.set_permissions(fs::Permissions::from_mode(0o444))?;
            fs::rename(&temp, &path)?;
        }
        Ok(())
    }

    /// Removes secrets of configurations other than `keep`.
    pub fn tidy_secrets(&self, app: AppId, service: &Name, keep: Option<&str>) {
        let root = self.secrets_root(app, service);
        let keep = keep.map(|hash| self.secrets(app, service, hash));
        let Ok(entries) = fs::read_dir(&root) else { return };
        for path in entries.flatten().map(|e| e.path()).filter(|path| Some(path) != keep.as_ref()) {
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "old secrets cannot be removed");
            }
        }
    }

    /// Removes everything of a service that is gone.
    pub fn forget(&self, app: AppId, service: &Name) {
        for path in [self.folder(app, service), self.secrets_root(app, service)] {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot be removed");
                }
                _ => {}
            }
        }
    }

    /// Takes the update lock of a service, if it does not hold it.
    ///
    /// # Errors
    /// As the file system says.
    pub fn lock(&self, app: AppId, service: &Name) -> io::Result<Locked> {
        let path = self.folder(app, service).join(LOCK_FILE);
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(&path) {
            Ok(file) => file,
            // No file, no lock. A symlink or a socket in its place is no lock either.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Locked::Ours(None)),
            Err(e) if [nix::libc::ELOOP, nix::libc::ENXIO].map(Some).contains(&e.raw_os_error()) => {
                tracing::warn!(path = %path.display(), "the update lock is no file; it is ignored");
                return Ok(Locked::Ours(None));
            }
            Err(e) => return Err(e),
        };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Locked::Ours(Some(lock))),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(Locked::Theirs),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// Forgets an earlier hand-over's word.
    pub fn clear_handover(&self, app: AppId, service: &Name) {
        let _ = fs::remove_file(self.handover(app, service));
    }

    /// Whether the new container said that it has taken over.
    #[must_use]
    pub fn handed_over(&self, app: AppId, service: &Name) -> bool {
        fs::symlink_metadata(self.handover(app, service)).is_ok()
    }

    fn handover(&self, app: AppId, service: &Name) -> PathBuf {
        self.folder(app, service).join(HANDOVER_FILE)
    }
}

fn plain_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.chars().all(plain)
        && Path::new(name).components().count() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> (tempfile::TempDir, Shared, AppId, Name) {
        let dir = tempfile::tempdir().unwrap();
        let shared = Shared::new(dir.path().to_owned());
        let app = "00112233445566778899aabbccddeeff".parse().unwrap();
        (dir, shared, app, "web".parse().unwrap())
    }

    #[test]
    fn a_held_lock_is_seen_and_a_left_one_is_free() {
        let (_dir, shared, app, web) = setup();
        assert!(matches!(shared.lock(app, &web), Ok(Locked::Ours(None))), "no file, no lock");
        fs::create_dir_all(shared.folder(app, &web)).unwrap();
        let path = shared.folder(app, &web).join(LOCK_FILE);
        let theirs = Flock::lock(File::create(&path).unwrap(), FlockArg::LockExclusive).unwrap();
        assert!(matches!(shared.lock(app, &web), Ok(Locked::Theirs)));
        drop(theirs);
        let ours = shared.lock(app, &web).unwrap();
        assert!(matches!(ours, Locked::Ours(Some(_))));
        assert!(matches!(shared.lock(app, &web), Ok(Locked::Theirs)), "held until dropped");
    }

    #[test]
    fn secrets_are_closed_to_the_host_and_open_to_the_container() {
        use crate::target::model::Secret;
        let (dir, shared, app, web) = setup();
        let mut service = service();
        service.secrets.insert("TOKEN".into(), Secret(b"x".to_vec()));
        shared.prepare(app, &web, &service).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let folder = shared.secrets(app, &web, &service.hash);
        assert_eq!(mode(&dir.path().join("secrets")), 0o700);
        assert_eq!((mode(&folder), mode(&folder.join("TOKEN"))), (0o755, 0o444));
        assert_eq!(mode(&dir.path().join("locks")), 0o700);
        assert_eq!(mode(&shared.folder(app, &web).join(LOCK_FILE)), 0o666);
        // Again, with another configuration: the old one's stay until they are let go.
        service.hash = "v1:other".into();
        service.secrets.insert("TOKEN".into(), Secret(b"y".to_vec()));
        shared.prepare(app, &web, &service).unwrap();
        assert_eq!(fs::read(folder.join("TOKEN")).unwrap(), b"x");
        shared.tidy_secrets(app, &web, Some("v1:other"));
        assert!(!folder.exists());
        // A name that is no file name of its own.
        service.secrets.insert("../../x".into(), Secret(b"y".to_vec()));
        assert!(shared.prepare(app, &web, &service).is_err());
        assert!(!dir.path().join("x").exists());
    }

    fn service() -> WantedService {
        let digest = copal_protocol::ids::Digest::of(b"");
        WantedService {
            spec: copal_protocol::spec::ServiceSpec::default(),
            image: copal_protocol::documents::ImageRef {
                repo: "r".into(),
                manifest_digest: digest,
                config_digest: digest,
                config_size: 1,
                size: 1,
                layers: Vec::new(),
            },
            env: std::collections::BTreeMap::new(),
            secrets: std::collections::BTreeMap::new(),
            hash: "v1:one".into(),
            strategy: copal_protocol::spec::UpdateStrategy::default(),
            joins: std::collections::BTreeMap::new(),
            peers: std::collections::BTreeSet::new(),
        }
    }

    #[test]
    fn the_shipped_mount_bounds_exactly_the_folder_that_containers_write_to() {
        let unit = include_str!("../../systemd/run-copal-locks.mount");
        let value = |key: &str| unit.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=')).unwrap();
        let (_dir, _, app, web) = setup();
        let folder = Shared::new("/run/copal".into()).folder(app, &web);
        assert_eq!(folder.parent().unwrap().parent().unwrap(), Path::new(value("Where")));
        let options: Vec<&str> = value("Options").split(',').collect();
        assert!(options.contains(&"nosuid") && options.contains(&"nodev") && options.contains(&"noexec"));
        assert!(options.iter().any(|o| o.starts_with("size=")), "{options:?}");
        assert!(options.iter().any(|o| o.starts_with("nr_inodes=")), "{options:?}");
        assert!(value("Before").contains("docker.service"), "bound before the engine binds it");
    }

    #[test]
    fn nothing_a_container_puts_there_is_followed_or_waited_for() {
        let (dir, shared, app, web) = setup();
        fs::create_dir_all(shared.folder(app, &web)).unwrap();
        let lock = shared.folder(app, &web).join(LOCK_FILE);
        std::os::unix::fs::symlink(dir.path().join("outside"), &lock).unwrap();
        assert!(matches!(shared.lock(app, &web), Ok(Locked::Ours(None))));
        assert!(!dir.path().join("outside").exists());
        fs::remove_file(&lock).unwrap();
        let status = std::process::Command::new("mkfifo").arg(&lock).status().unwrap();
        assert!(status.success());
        assert!(shared.lock(app, &web).is_ok(), "a pipe does not hang it");
    }
}
