//! Asking a program of the system that only tells something. Never one that changes anything, never a shell.

use std::{
    io::Read as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Between looks whether it ended.
const POLL: Duration = Duration::from_millis(20);
/// Bytes of its answer that are read; what follows is left.
const MOST: u64 = 1 << 20;

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
    let out = child.stdout.take()?;
    // Beside the waiting: a program whose pipe is full does not end. The thread ends with the program.
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        out.take(MOST).read_to_end(&mut bytes).map(|_| bytes)
    });
    let status = loop {
        match child.try_wait() {
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
    let bytes = reader.join().ok()?.ok()?;
    // One that was cut off by us ends by a signal; what it said counts.
    (status.success() || bytes.len() as u64 == MOST).then(|| String::from_utf8_lossy(&bytes).into_owned())
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
        assert_eq!(ask("yes", &[], patience).unwrap().len() as u64, MOST, "and it never ends by itself");
        let began = Instant::now();
        assert_eq!(ask("sleep", &["600"], Duration::from_millis(100)), None);
        assert!(began.elapsed() < Duration::from_secs(300), "it was waited for");
    }
}
