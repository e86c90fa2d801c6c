//! The bytes of a session, both ways, until something ends it.

use std::{sync::Mutex, time::Duration};

use bytes::Bytes;
use copal_protocol::terminal::{Hears, RecordKind, Records, Says};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use super::{
    bounds::{Bounds, Used},
    pty::Pty,
    recordings::Recording,
};
use crate::channel::streams::{End, Input, StreamIo};

/// Read of a shell at a time.
const PIECE: usize = 16 << 10;
/// Between two looks at bounds and leave.
const LOOK: Duration = Duration::from_millis(500);

pub(super) struct Talk<'a> {
    pub(super) io: &'a StreamIo,
    pub(super) bounds: Bounds,
    pub(super) recording: Option<Recording>,
    pub(super) begun: Instant,
}

impl Talk<'_> {
    /// Until the shell ends, a bound is reached, `leave` is taken back, or nobody is there any more.
    pub(super) async fn run(
        self,
        pty: Pty,
        mut says: Option<Says>,
        mut hears: Option<(Hears, Records)>,
        leave: impl Fn() -> Result<(), End>,
    ) -> End {
        let Self { io, bounds, recording, begun } = self;
        let used = Used::new(bounds, begun);
        let recording = Mutex::new(recording);
        let recorded = |what: &mut dyn FnMut(&mut Recording) -> Result<(), End>| {
            let mut recording = recording.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            recording.as_mut().map_or(Ok(()), what)
        };
        let Pty { mut output, mut input, control } = pty;
        let gone = || End::because("device_away", "the channel ended");

        let out = async {
            let mut piece = vec![0; PIECE];
            loop {
                let n = match output.read(&mut piece).await {
                    Ok(n) => n,
                    // A terminal that nobody has the other end of any more.
                    Err(e) if e.raw_os_error() == Some(nix::libc::EIO) => 0,
                    Err(e) => return End::because("failed", format!("the terminal cannot be read: {e}")),
                };
                if n == 0 {
                    let exit_code = control.exit_code().await;
                    return End { exit_code, ..End::ended() };
                }
                let bytes = &piece[..n];
                let kept = used.count(n).and_then(|()| recorded(&mut |r| r.output(begun.elapsed(), bytes)));
                if let Err(end) = kept {
                    return end;
                }
                let bytes = match &mut says {
                    Some(says) => says.seal(bytes).into(),
                    None => Bytes::copy_from_slice(bytes),
                };
                if io.send(bytes).await.is_err() {
                    return gone();
                }
            }
        };
        let typed = async {
            loop {
                // What came with the grant is there already.
                let mut plain = Vec::new();
                if let Some((hears, records)) = &mut hears {
                    let broken = |why: String| End::because("line_broken", why);
                    loop {
                        match records.whole() {
                            Ok(Some((RecordKind::Sealed, body))) => match hears.open(&body) {
                                Ok(bytes) => plain.extend_from_slice(&bytes),
                                Err(e) => return broken(e.to_string()),
                            },
                            Ok(Some(_)) => return broken("a record out of place".to_owned()),
                            Ok(None) => break,
                            Err(e) => return broken(e.to_string()),
                        }
                    }
                }
                if !plain.is_empty() {
                    used.typed(Instant::now());
                    if let Err(end) = used.count(plain.len()) {
                        return end;
                    }
                    // A shell that ended reads no more; that it ended is seen where it is read.
                    let _ = input.write_all(&plain).await;
                }
                match io.recv().await {
                    None => return gone(),
                    Some(Input::Resize { cols, rows }) => {
                        if let Err(end) = recorded(&mut |r| r.resize(begun.elapsed(), cols, rows)) {
                            return end;
                        }
                        control.resize(cols, rows).await;
                    }
                    Some(Input::Data(bytes)) => match &mut hears {
                        Some((_, records)) => records.push(&bytes),
                        None => {
                            used.typed(Instant::now());
                            if let Err(end) = used.count(bytes.len()) {
                                return end;
                            }
                            let _ = input.write_all(&bytes).await;
                        }
                    },
                }
            }
        };
        let watched = async {
            loop {
                tokio::time::sleep(LOOK).await;
                let fine = used
                    .check(Instant::now())
                    .and_then(|()| leave())
                    .and_then(|()| recorded(&mut Recording::flush));
                if let Err(end) = fine {
                    return end;
                }
            }
        };
        let end = tokio::select! {
            end = out => end,
            end = typed => end,
            end = watched => end,
            () = io.gone() => gone(),
        };
        let _ = recorded(&mut |r| {
            r.finish(begun.elapsed());
            Ok(())
        });
        end
    }
}
