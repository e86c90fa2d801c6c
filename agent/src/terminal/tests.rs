//! Sessions with doors that open onto nothing, and a Root that says what it is told to.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use copal_protocol::{
    documents::{TerminalGrant, TerminalOffer},
    envelope::Envelope,
    ids::SessionId,
    terminal::LineKey,
    verify::{self, Verified},
};
use tokio::io::{AsyncRead, DuplexStream};

use super::{
    doors::{Control, Pty},
    *,
};

/// Shells that say nothing, or wait until the other end of them is dropped.
#[derive(Default)]
struct Shells {
    opened: AtomicUsize,
    wait: Mutex<Option<DuplexStream>>,
}

struct NoControl;

impl Control for NoControl {
    fn resize(&self, _: u16, _: u16) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
    fn exit_code(&self) -> BoxFuture<'_, Option<i64>> {
        Box::pin(async { Some(0) })
    }
}

struct Empty(Arc<Shells>);

impl Doors for Empty {
    fn find<'a>(&'a self, _: &'a mut Record) -> BoxFuture<'a, Result<(), End>> {
        Box::pin(async { Ok(()) })
    }
    fn open<'a>(&'a self, _: &'a mut Record, _: u16, _: u16) -> BoxFuture<'a, Result<Pty, End>> {
        self.0.opened.fetch_add(1, Ordering::Relaxed);
        let output: Box<dyn AsyncRead + Send + Unpin> = match self.0.wait.lock().unwrap().take() {
            Some(end) => Box::new(end),
            None => Box::new(tokio::io::empty()),
        };
        Box::pin(async {
            Ok(Pty { output, input: Box::new(tokio::io::sink()), control: Box::new(NoControl) })
        })
    }
    fn kill<'a>(&'a self, _: &'a Record) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

struct Says(TerminalMode);

impl Trust for Says {
    fn mode(&self) -> TerminalMode {
        self.0
    }
    fn offer(
        &self,
        _: SessionId,
        _: &TerminalTarget,
        _: &LineKey,
    ) -> Result<(TerminalOffer, Envelope), String> {
        Err("nobody is there to grant it".to_owned())
    }
    fn judge(
        &self,
        _: &TerminalOffer,
        _: u64,
        _: &Envelope,
    ) -> Result<(Verified<TerminalGrant>, String), verify::Error> {
        unreachable!("no offer is made")
    }
}

fn deps(dir: &std::path::Path, mode: TerminalMode) -> (Arc<Deps>, Arc<Shells>) {
    let shells = Arc::new(Shells::default());
    let deps = Deps {
        doors: Box::new(Empty(shells.clone())),
        trust: Box::new(Says(mode)),
        policy: dir.join("policy.toml"),
        folder: Folder::of(dir),
        recordings: Recordings::of(dir),
        clock: Clock::default(),
        notes: Notes::default(),
    };
    (Arc::new(deps), shells)
}

fn asked(who: &str, mode: Option<TerminalMode>) -> OpenTerminal {
    OpenTerminal {
        session_id: SessionId::from_bytes([7; 16]),
        target: TerminalTarget::Service("web".parse().unwrap()),
        cols: 80,
        rows: 24,
        who: who.to_owned(),
        reason: "it is slow".to_owned(),
        max_s: 60,
        idle_s: 60,
        max_bytes: 1 << 20,
        mode,
    }
}

#[tokio::test]
async fn what_the_cloud_would_not_record_and_the_device_would_not_either_is_not_opened() {
    use TerminalMode::{Cloud, Grant, Off};
    let dir = tempfile::tempdir().unwrap();
    for (root, by_cloud, code, opened) in [
        // The cloud takes it for the device's to record, and the other way round.
        (Cloud, Some(Grant), "terminal_mode", 0),
        (Grant, Some(Cloud), "terminal_mode", 0),
        (Off, Some(Cloud), "terminal_off", 0),
        (Cloud, Some(Cloud), "ended", 1),
        // An older cloud does not say it: Root alone decides.
        (Cloud, None, "ended", 1),
        (Grant, None, "failed", 0),
        (Grant, Some(Grant), "failed", 0),
    ] {
        let (deps, shells) = deps(dir.path(), root);
        let (Ok(end) | Err(end)) = run(&deps, asked("anna", by_cloud), &StreamIo::alone()).await;
        assert_eq!(end.code, code, "{root:?} {by_cloud:?}: {}", end.message);
        assert_eq!(shells.opened.load(Ordering::Relaxed), opened, "{root:?} {by_cloud:?}");
    }
}

#[tokio::test]
async fn a_session_that_is_open_is_not_shown_as_another_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (deps, shells) = deps(dir.path(), TerminalMode::Cloud);
    let (shell, says) = tokio::io::duplex(16);
    *shells.wait.lock().unwrap() = Some(says);
    let first_deps = deps.clone();
    let first = tokio::spawn(async move {
        let (Ok(end) | Err(end)) = run(&first_deps, asked("anna", None), &StreamIo::alone()).await;
        end.code
    });
    while shells.opened.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let second = run(&deps, asked("mallory", None), &StreamIo::alone()).await;
    assert_eq!(second.unwrap_err().code, "session_taken");
    assert_eq!(shells.opened.load(Ordering::Relaxed), 1);
    let open = deps.folder.all();
    assert_eq!(
        open.iter().map(|record| record.who.as_str()).collect::<Vec<_>>(),
        ["anna"],
        "it is still shown"
    );
    drop(shell);
    assert_eq!(first.await.unwrap(), "ended");
    assert!(deps.folder.all().is_empty());
}
