//! The machine: QEMU with a bootloader, a disk, a network card, and two consoles.
//!
//! The serial line carries what bootloader, kernel and agent say, and nothing is typed into it; the second console is a
//! shell. The power goes by SIGKILL: nothing in the machine, and nothing in QEMU, hears of it before.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{fs::OpenOptionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{board::Board, disk::Disk};

/// How long anything inside the machine may take. Emulated on two busy cores, ten times a quiet machine's time is normal.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// What is built into the machine besides its disk.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    /// Where every write and flush of the disk is recorded.
    pub write_log: Option<PathBuf>,
    /// MiB; 256 unless said otherwise.
    pub memory_mib: Option<u32>,
    /// Two processors instead of one.
    pub two_cpus: bool,
    /// How long it may take to say or do what is waited for; [`PATIENCE`] unless said otherwise.
    pub patience: Option<Duration>,
}

/// A machine with power. Without, once dropped.
pub struct Machine {
    pub disk: Disk,
    child: Arc<Mutex<Child>>,
    console: Arc<Console>,
    /// Lines that were waited for already.
    cursor: usize,
    patience: Duration,
    dir: TempDir,
}

struct Console {
    lines: Mutex<Lines>,
    more: Condvar,
}

impl Console {
    /// A test that fails while it waits must still be able to print what the machine said.
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Lines {
    all: Vec<String>,
    ended: bool,
    /// The power goes at the first line with this in it.
    cut_at: Option<String>,
    cut: bool,
}

impl Machine {
    /// Turns the power on.
    pub fn on(disk: &Path) -> Self {
        Self::with(disk, &Parts::default())
    }

    pub fn with(disk: &Path, parts: &Parts) -> Self {
        let (disk, dir) = (Disk::at(disk), TempDir::new().unwrap());
        let board = disk.board();
        let mut command = match board {
            Board::Uboot => emulator("qemu-system-aarch64", &["-M", "virt", "-cpu", "cortex-a72"]),
            Board::Grub => emulator("qemu-system-x86_64", &["-M", "q35", "-cpu", "max"]),
        };
        let mut flashes = ["flash0.img", "flash1.img"]
            .map(|name| format!("readonly=on,file={}", board.built(name).display()));
        if board == Board::Grub {
            // UEFI writes its variables; each machine begins with the factory's.
            let variables = dir.path().join("flash1.img");
            fs::copy(board.built("flash1.img"), &variables).unwrap();
            flashes[1] = format!("file={}", variables.display());
        }
        command
            .args(["-smp", if parts.two_cpus { "2" } else { "1" }])
            .args(["-m", &parts.memory_mib.unwrap_or(256).to_string()])
            .args(["-nographic", "-nodefaults", "-serial", "stdio", "-monitor", "none"])
            .args(["-drive", &format!("if=pflash,format=raw,index=0,{}", flashes[0])])
            .args(["-drive", &format!("if=pflash,format=raw,index=1,{}", flashes[1])])
            .args(["-blockdev", &drive(&disk.path, parts.write_log.as_deref())])
            .args(["-device", "nvme,drive=disk,serial=copal,bootindex=0"])
            .args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="])
            .args(["-device", "virtio-serial-pci", "-device", "virtconsole,chardev=shell"])
            .args([
                "-chardev",
                &format!("socket,id=shell,server=on,wait=off,path={}", dir.path().join("shell").display()),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(dir.path().join("qemu.log")).unwrap());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}; run tests/setup.sh os"));
        let stdout = child.stdout.take().unwrap();
        let child = Arc::new(Mutex::new(child));
        let console = Arc::new(Console { lines: Mutex::default(), more: Condvar::new() });
        let (reader, killer) = (console.clone(), child.clone());
        std::thread::spawn(move || read_console(stdout, &reader, &killer));
        Self { disk, child, console, cursor: 0, patience: parts.patience.unwrap_or(PATIENCE), dir }
    }

    /// Cuts the power: SIGKILL.
    pub fn cut(&mut self) {
        kill(&self.child);
    }

    /// Ends QEMU in order, so that it finishes its own files (a write log's header). The guest hears nothing of it.
    pub fn pull_plug_politely(&mut self) {
        let mut child = self.child.lock().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        child.wait().unwrap();
    }

    /// The power goes by itself the moment a line with this in it appears.
    pub fn cut_at(&self, what: &str) {
        self.lines().cut_at = Some(what.to_owned());
    }

    /// The power goes by itself the moment `probe` sees what it waits for; looked at about every millisecond, until
    /// `patience` is over. Gives whether it went.
    pub fn cut_when(&mut self, patience: Duration, mut probe: impl FnMut(&Disk) -> bool) -> bool {
        let started = Instant::now();
        while started.elapsed() < patience {
            if probe(&self.disk) {
                self.cut();
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Waits until the power went by itself.
    pub fn wait_cut(&mut self) {
        self.wait("the power goes", |lines| lines.cut.then(String::new));
    }

    /// Waits for the next line that contains `what`; gives it.
    pub fn line(&mut self, what: &str) -> String {
        let from = self.cursor;
        let (at, line) = self.wait(what, |lines| {
            let at = lines.all[from..].iter().position(|l| l.contains(what))? + from;
            Some((at, lines.all[at].clone()))
        });
        self.cursor = at + 1;
        line
    }

    /// Whether such a line has appeared since the last one waited for.
    pub fn said(&self, what: &str) -> bool {
        self.lines().all[self.cursor..].iter().any(|l| l.contains(what))
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.console.lines()
    }

    fn wait<T>(&self, what: &str, probe: impl Fn(&Lines) -> Option<T>) -> T {
        let until = Instant::now() + self.patience;
        let mut lines = self.lines();
        loop {
            if let Some(found) = probe(&lines) {
                return found;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the machine did not say within {:?}: {what}", self.patience);
            assert!(!lines.ended, "the machine ended before: {what}; {}", self.qemu_said());
            lines = self.console.more.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the system in `slot` is up; gives its line.
    pub fn booted(&mut self, slot: &str) -> String {
        self.line(&format!("slot={slot} "))
    }

    /// What a command prints in the machine's shell; must end well.
    pub fn shell(&self, command: &str) -> String {
        let socket = self.dir.path().join("shell");
        let until = Instant::now() + PATIENCE;
        loop {
            match ask_shell(&socket, command) {
                Some((0, text)) => return text,
                Some((status, text)) => panic!("in the machine, `{command}` gave {status}: {text}"),
                None => assert!(Instant::now() < until, "the machine's shell does not answer: {command}"),
            }
        }
    }

    /// Everything on the serial line so far.
    pub fn console(&self) -> String {
        self.lines().all.join("\n")
    }

    fn qemu_said(&self) -> String {
        fs::read_to_string(self.dir.path().join("qemu.log")).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        kill(&self.child);
        if std::thread::panicking() {
            let place = crate::repository().join("target/os/failed");
            let _ = fs::create_dir_all(&place);
            let file = place.join(format!("console-{}.log", copal_e2e::unique()));
            let _ = fs::write(&file, self.console());
            let text = self.console();
            let tail: Vec<&str> = text.lines().rev().take(60).collect();
            eprintln!("--- last lines of the machine's console; all of it: {}", file.display());
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
            eprintln!("{}", self.qemu_said());
        }
    }
}

fn kill(child: &Mutex<Child>) {
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = child.kill();
    let _ = child.wait();
}

fn read_console(stdout: impl std::io::Read, console: &Console, child: &Mutex<Child>) {
    let mut reader = BufReader::new(stdout);
    let mut raw = Vec::new();
    loop {
        raw.clear();
        let n = reader.read_until(b'\n', &mut raw).unwrap_or(0);
        let mut lines = console.lines();
        if n == 0 {
            lines.ended = true;
            console.more.notify_all();
            return;
        }
        let line = String::from_utf8_lossy(&raw).trim_end().to_owned();
        if lines.cut_at.as_ref().is_some_and(|what| line.contains(what)) {
            lines.cut_at = None;
            lines.cut = true;
            kill(child);
        }
        lines.all.push(line);
        console.more.notify_all();
    }
}

/// One command on the second console; `None` where it does not answer (yet).
fn ask_shell(socket: &Path, command: &str) -> Option<(i32, String)> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    let word = copal_e2e::unique();
    // Spelled in two halves, so that an echo of the command is not taken for its end.
    writeln!(
        stream,
        "stty -echo; echo begin-''{word}; {{ {command}; }} 2>&1 </dev/null; echo end-''{word} $?"
    )
    .ok()?;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    let (begin, end) = (format!("begin-{word}"), format!("end-{word} "));
    let started = Instant::now();
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(n) => text.extend_from_slice(&buffer[..n]),
            Err(_) => {
                let began = String::from_utf8_lossy(&text).contains(&begin);
                // Nobody there yet: ask again. Begun: wait for the end.
                if !began || started.elapsed() > PATIENCE {
                    return None;
                }
            }
        }
        let seen = String::from_utf8_lossy(&text).replace('\r', "");
        if let Some((_, after)) = seen.split_once(&begin)
            && let Some((output, status)) = after.split_once(&end)
            && let Some((status, _)) = status.split_once('\n')
        {
            return Some((status.trim().parse().unwrap_or(-1), output.trim().to_owned()));
        }
    }
}

fn emulator(program: &str, machine: &[&str]) -> Command {
    let mut command = Command::new(program);
    // Never the host's own virtualisation: where it is there and broken, machines hang.
    command.args(machine).args(["-accel", "tcg"]);
    command
}

fn drive(disk: &Path, write_log: Option<&Path>) -> String {
    // With O_DIRECT a write that was acknowledged before the power went has left QEMU for the host's disk queue, and
    // the host's page cache cannot join what the guest did not flush.
    let direct = if takes_direct(disk) { "on" } else { "off" };
    match write_log {
        None => format!(
            "driver=raw,node-name=disk,cache.direct={direct},file.driver=file,file.cache.direct={direct},file.filename={}",
            disk.display()
        ),
        Some(log) => format!(
            "driver=blklogwrites,node-name=disk,file.driver=file,file.filename={},log.driver=file,log.filename={}",
            disk.display(),
            log.display()
        ),
    }
}

fn takes_direct(disk: &Path) -> bool {
    static KNOWN: AtomicBool = AtomicBool::new(false);
    let direct = if cfg!(target_arch = "aarch64") { 0o200_000 } else { 0o40_000 };
    let taken = fs::OpenOptions::new().read(true).custom_flags(direct).open(disk).is_ok();
    if !taken && !KNOWN.swap(true, Ordering::Relaxed) {
        eprintln!("note: {} takes no O_DIRECT; power cuts keep what the guest did not flush", disk.display());
    }
    taken
}
