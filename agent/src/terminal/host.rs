//! A shell on the device itself, where its policy file allows one.
//!
//! The agent makes the terminal, and starts itself once more as the process that takes it ([`child`]): a session of its own, whose terminal
//! this is, then the shell in its place. Where systemd runs the device the shell is a unit of its own: the agent's sandbox would hold
//! it otherwise, and a unit is ended with all that it started.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use super::{
    doors::{Control, MARK, Pty},
    open::Record,
    processes,
};
use crate::channel::streams::End;

/// The program that takes a terminal: this one.
const SELF: &str = "/proc/self/exe";
/// The word by which it knows.
pub const CHILD: &str = "terminal-child";
/// There where systemd runs the device.
const SYSTEMD: &str = "/run/systemd/system";
const RUN: &str = "/usr/bin/systemd-run";
const SHELLS: &[&str] = &["/bin/bash", "/bin/sh"];
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long after its output a shell may take to end.
const LAST: (Duration, u32) = (Duration::from_millis(50), 60);

pub(super) fn find(record: &mut Record) -> Result<(), End> {
    match SHELLS.iter().find(|shell| Path::new(shell).exists()) {
        Some(shell) => {
            record.shell = (*shell).to_owned();
            Ok(())
        }
        None => Err(End::because("no_shell", format!("this device has none of {}", SHELLS.join(", ")))),
    }
}

fn unit(record: &Record) -> String {
    format!("copal-terminal-{}", record.session_id)
}

fn in_a_unit() -> bool {
    Path::new(SYSTEMD).exists() && Path::new(RUN).exists() && nix::unistd::Uid::effective().is_root()
}

/// Of whoever the agent runs as. A service of systemd has no HOME by itself, nor has a unit that it starts.
fn home() -> PathBuf {
    std::env::home_dir().unwrap_or_else(|| "/".into())
}

/// What the terminal's first process becomes.
fn command(record: &Record) -> Vec<String> {
    let mark = format!("{MARK}={}", record.session_id);
    let mut words = Vec::new();
    if in_a_unit() {
        words.extend([RUN, "--quiet", "--collect", "--pty"].map(str::to_owned));
        words.push(format!("--unit={}", unit(record)));
        words.extend([
            "--setenv=TERM=xterm-256color".to_owned(),
            format!("--setenv=HOME={}", home().display()),
            format!("--setenv={mark}"),
            "--".to_owned(),
        ]);
    }
    words.extend([record.shell.clone(), "-l".to_owned()]);
    words
}

pub(super) fn open(record: &mut Record, cols: u16, rows: u16) -> Result<Pty, End> {
    open_with(Path::new(SELF), record, cols, rows)
        .map_err(|e| End::because("failed", format!("a terminal of this device cannot be opened: {e}")))
}

fn open_with(program: &Path, record: &mut Record, cols: u16, rows: u16) -> io::Result<Pty> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    tcsetwinsize(&master, window(cols, rows))?;
    let child = Command::new(program)
        .arg(CHILD)
        .arg(OsStr::from_bytes(name.to_bytes()))
        .args(command(record))
        .env_clear()
        .env("TERM", "xterm-256color")
        .env("PATH", PATH)
        .env("HOME", home())
        .env(MARK, record.session_id.to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    record.pid = i32::try_from(child.id()).ok();
    // A read waits in a thread of its own; it ends with the shell, whose end hangs the terminal up.
    let end = || Ok::<_, io::Error>(tokio::fs::File::from_std(fs::File::from(master.try_clone()?)));
    Ok(Pty {
        output: Box::new(end()?),
        input: Box::new(end()?),
        control: Box::new(Shell { master, child: Mutex::new(Some(child)) }),
    })
}

/// What the process that takes a terminal does: `arguments` are the terminal's name, and what to become. Returns only where it could not.
///
/// # Errors
/// The system's.
pub fn child(arguments: &[String]) -> io::Result<()> {
    let usage = || io::Error::other("the agent calls this itself, with a terminal and a command");
    let (terminal, command) = arguments.split_first().ok_or_else(usage)?;
    let (program, arguments) = command.split_first().ok_or_else(usage)?;
    nix::unistd::setsid()?;
    // The first terminal that the leader of a session opens is the session's own.
    let terminal = fs::OpenOptions::new().read(true).write(true).open(terminal)?;
    let mut shown = terminal.try_clone()?;
    let error = Command::new(program)
        .args(arguments)
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal)
        .exec();
    // Whoever opened it sees why nothing came of it.
    let _ = write!(shown, "{program}: {error}\r\n");
    Err(error)
}

fn window(cols: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

struct Shell {
    master: OwnedFd,
    /// There until this is dropped.
    child: Mutex<Option<Child>>,
}

impl Control for Shell {
    fn resize(&self, cols: u16, rows: u16) -> BoxFuture<'_, ()> {
        if let Err(error) = tcsetwinsize(&self.master, window(cols, rows)) {
            tracing::debug!(%error, "a terminal was not resized");
        }
        Box::pin(std::future::ready(()))
    }

    fn exit_code(&self) -> BoxFuture<'_, Option<i64>> {
        Box::pin(async move {
            for _ in 0..LAST.1 {
                let ended = self
                    .child
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .as_mut()
                    .map_or(Ok(None), Child::try_wait);
                match ended {
                    Ok(None) => tokio::time::sleep(LAST.0).await,
                    Ok(Some(status)) => {
                        use std::os::unix::process::ExitStatusExt as _;
                        return status.code().or(status.signal().map(|s| 128 + s)).map(i64::from);
                    }
                    Err(_) => return None,
                }
            }
            None
        })
    }
}

impl Drop for Shell {
    /// Killed by whoever ends the session; this only takes its exit from the kernel.
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut child) = child else { return };
        if !matches!(child.try_wait(), Ok(Some(_))) {
            let _ = child.kill();
            // One that waits for a broken disk is not even killed at once; nothing else waits with it.
            std::thread::spawn(move || child.wait());
        }
    }
}

pub(super) async fn kill(record: &Record) {
    if record.pid.is_none() {
        return;
    }
    if in_a_unit() {
        let unit = format!("{}.service", unit(record));
        let stop = move || {
            let quiet = || Stdio::null();
            let run = |words: &[&str]| {
                Command::new("systemctl")
                    .args(words)
                    .arg(&unit)
                    .stdin(quiet())
                    .stdout(quiet())
                    .stderr(quiet())
                    .status()
            };
            run(&["kill", "--signal=SIGKILL"]).and_then(|_| run(&["stop"]))
        };
        let _ = tokio::task::spawn_blocking(stop).await;
    }
    let left = processes::kill(record.session_id, None, None).await;
    if left > 0 {
        tracing::error!(session = %record.session_id, left, "processes of a terminal could not be killed");
    }
}
