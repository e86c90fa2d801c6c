//! A socket that counts what passes.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{
    Shared,
    seen::{Passed, Way},
};

/// See the module.
pub(crate) struct Counted {
    pub(crate) socket: TcpStream,
    pub(crate) shared: Arc<Shared>,
    pub(crate) way: Way,
}

impl Counted {
    fn passed(&self) -> &Passed {
        self.shared.seen.passed(self.way)
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buffer))?;
        let got = buffer.filled().len() - before;
        self.passed().received.fetch_add(got as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let put = ready!(Pin::new(&mut self.socket).poll_write(cx, bytes))?;
        self.passed().sent.fetch_add(put as u64, Relaxed);
        Poll::Ready(Ok(put))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
