//! Asking a program of the system that only tells something. Never one that changes anything, never a shell.

use std::{
    io::{ErrorKind, Read as _},
    process::{ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Between looks whether it ended.
const POLL: Duration = Duration::from_millis(20);
/// Bytes of its answer that are read; what follows is left.
const MOST: usize = 1 << 20;

/// What the program printed; `None` where there is no such program, it failed, or it took longer than `patience`.
#[must_use]
pub fn ask(program: &str, arguments: &[&str], patience: Duration) -> Option<String> {
    let until = Instant::now() + patience;
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // Read beside the waiting, as a program whose pipe is full does not end; and by this thread, as each has memory of its own that
    // it does not give back.
    let mut out = child.stdout.take().filter(|out| fcntl(out, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).is_ok());
    let mut bytes = Vec::new();
    let status = loop {
        // First whether it ended: what it said before that is in the pipe then.
        let ended = child.try_wait();
        // Where all that is wanted was read the pipe is closed, which ends the program.
        if let Some(pipe) = &mut out
            && !take(pipe, &mut bytes)
        {
            out = None;
        }
        match ended {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(POLL),
            _ => {
                // It may have ended just now; either way it is waited for, so that nothing is left of it.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    // One that was cut off by us ends by a signal; what it said counts.
    (status.success() || bytes.len() == MOST).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// Takes what is in the pipe; whether more may come.
fn take(out: &mut ChildStdout, bytes: &mut Vec<u8>) -> bool {
    let mut piece = [0; 4096];
    loop {
        let most = piece.len().min(MOST - bytes.len());
        match out.read(&mut piece[..most]) {
            Ok(0) => return false,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return e.kind() == ErrorKind::WouldBlock,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_heard_and_one_that_hangs_is_let_go() {
        let patience = Duration::from_secs(20);
        assert_eq!(ask("echo", &["hello"], patience).as_deref(), Some("hello\n"));
        assert_eq!(ask("false", &[], patience), None);
        assert_eq!(ask("no-such-program-here", &[], patience), None);
        assert_eq!(
            ask("head", &["-c", "300000", "/dev/zero"], patience).unwrap().len(),
            300_000,
            "more than a pipe holds"
        );
        assert_eq!(ask("yes", &[], patience).unwrap().len(), MOST, "and it never ends by itself");
        let began = Instant::now();
        assert_eq!(ask("sleep", &["600"], Duration::from_millis(100)), None);
        assert!(began.elapsed() < Duration::from_secs(300), "it was waited for");
    }
}
