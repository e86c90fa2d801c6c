//! A terminal of this machine with a program in it, as a person has one.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    process::{Child, Command},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcgetattr, tcsetwinsize},
};

/// A program in a terminal of its own. Killed when dropped.
pub struct Pty {
    master: OwnedFd,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
    /// How the terminal was before the program began, in the kernel's words.
    before: String,
}

fn window(cols: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Pty {
    /// Starts `command` in a window of 80 by 24.
    pub fn start(command: &Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        tcsetwinsize(&master, window(80, 24)).unwrap();
        let end = || {
            // O_NOCTTY: it must not become this test's own terminal.
            let file =
                OpenOptions::new().read(true).write(true).custom_flags(0o400).open(name.to_str().unwrap());
            file.unwrap()
        };
        // A session of its own, whose terminal this is: only then a new window size is told to the program.
        let mut in_session = Command::new("setsid");
        in_session.arg("--ctty").arg("--wait").arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => in_session.env(key, value),
                None => in_session.env_remove(key),
            };
        }
        let before = modes(&master);
        let child = in_session.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, into) = (File::from(master.try_clone().unwrap()), shown.clone());
        std::thread::spawn(move || {
            let mut piece = vec![0; 64 << 10];
            while let Ok(n @ 1..) = reader.read(&mut piece) {
                into.lock().unwrap().extend_from_slice(&piece[..n]);
            }
        });
        Self { master, child, shown, before }
    }

    /// Types.
    pub fn types(&self, text: &str) {
        File::from(self.master.try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
    }

    /// Makes the window larger or smaller.
    pub fn resize(&self, cols: u16, rows: u16) {
        tcsetwinsize(&self.master, window(cols, rows)).unwrap();
    }

    /// Everything that was shown so far.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    /// Waits until this was shown.
    pub async fn shows(&self, text: &str) {
        crate::eventually(&format!("{text:?} is shown"), 60, || async {
            let shown = self.shown();
            if shown.contains(text) { Ok(()) } else { Err(shown) }
        })
        .await;
    }

    /// Waits for the program's end; what it ended with, and whether the terminal is as it was before.
    pub async fn ends(&mut self) -> (Option<i32>, bool) {
        for _ in 0..1200 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), modes(&self.master) == self.before);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it did not end within 60 s; shown: {}", self.shown());
    }
}

fn modes(terminal: &OwnedFd) -> String {
    let modes = tcgetattr(terminal).unwrap();
    format!("{:?}{:?}{:?}{:?}", modes.input_modes, modes.output_modes, modes.local_modes, modes.control_modes)
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
