//! A terminal that runs: its two ways, and what else can be done with it.

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// A shell's terminal.
pub struct Pty {
    /// What it says; ends with the shell.
    pub output: Box<dyn AsyncRead + Send + Unpin>,
    /// What is typed.
    pub input: Box<dyn AsyncWrite + Send + Unpin>,
    /// The rest.
    pub control: Box<dyn Control>,
}

/// What is done with a terminal beside reading and writing.
pub trait Control: Send + Sync {
    /// Its window has this size now.
    fn resize(&self, cols: u16, rows: u16) -> BoxFuture<'_, ()>;
    /// What the shell ended with, once its output has ended.
    fn exit_code(&self) -> BoxFuture<'_, Option<i64>>;
}
