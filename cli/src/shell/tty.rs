//! This side's terminal: raw while a remote one is shown in it, as before afterwards, whatever happens in between.

use std::io::{IsTerminal as _, Read as _};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// Read at a time.
const PIECE: usize = 4 << 10;

/// Puts the terminal back when it goes.
pub(super) struct Raw(Option<Termios>);

impl Raw {
    /// Every key goes through, Ctrl-C too. Nothing where standard input is no terminal.
    pub(super) fn enter() -> Self {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Self(None);
        }
        let Ok(before) = tcgetattr(&stdin) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        match tcsetattr(&stdin, OptionalActions::Drain, &raw) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = self.0.take() {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &before);
        }
    }
}

/// The window's columns and rows.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col.min(1000), size.ws_row.min(1000)))
}

/// What is typed, from a thread of its own: nothing waits for its last read when the program ends. Closed at the end of input.
pub(super) fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(8);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut piece = vec![0; PIECE];
        while let Ok(n @ 1..) = stdin.read(&mut piece) {
            if sender.blocking_send(piece[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Finds `~.` at the beginning of a line, by which a person leaves a terminal that answers no more.
#[derive(Debug)]
pub(super) struct Escape(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    LineBegins,
    Tilde,
    Within,
}

impl Default for Escape {
    fn default() -> Self {
        Self(State::LineBegins)
    }
}

impl Escape {
    /// Whether it stands in these bytes. They are sent nonetheless: where nobody answers, nobody reads.
    pub(super) fn is_in(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            self.0 = match (self.0, byte) {
                (State::Tilde, b'.') => return true,
                (State::LineBegins, b'~') => State::Tilde,
                (_, b'\r' | b'\n') => State::LineBegins,
                _ => State::Within,
            };
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_is_at_the_beginning_of_a_line_only() {
        for (pieces, out) in [
            (&["~."][..], true),
            (&["ls\r~."], true),
            (&["ls\r", "~", "."], true),
            (&["ls ~."], false),
            (&["~x."], false),
            (&["\r~", "~."], false),
        ] {
            let mut escape = Escape::default();
            assert_eq!(pieces.iter().any(|p| escape.is_in(p.as_bytes())), out, "{pieces:?}");
        }
    }
}
