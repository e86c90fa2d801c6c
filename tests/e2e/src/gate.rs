//! What stands between devices and cloud and passes bytes on, with rules of its own: a middlebox that lets go of what idles, or a
//! proxy that one asks to connect.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// A running one.
pub struct Gate {
    /// Where it listens: host and port.
    pub address: String,
    opened: Arc<AtomicUsize>,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Gate {
    /// Lets go of connections on which nothing passed for so long, as many a router does. `upstream`: host and port.
    pub async fn forgetful(upstream: &str, idle: Duration) -> Self {
        let upstream = upstream.to_owned();
        Self::start(move |socket, _| {
            let upstream = upstream.clone();
            async move {
                let to = TcpStream::connect(upstream).await?;
                pass(socket, to, idle).await
            }
        })
        .await
    }

    /// A proxy of HTTP that connects to `upstream`, whatever it is asked for.
    pub async fn proxy(upstream: &str) -> Self {
        Self::proxy_at("127.0.0.1", upstream).await
    }

    /// The same at another of this machine's addresses. When it is dropped it takes no more connections; those there are go on.
    pub async fn proxy_at(host: &str, upstream: &str) -> Self {
        let upstream = upstream.to_owned();
        Self::start_at(host, move |mut socket, asked| {
            let upstream = upstream.clone();
            async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
                    head.push(socket.read_u8().await?);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let first = head.lines().next().unwrap_or_default().to_owned();
                asked.lock().unwrap().push(first.clone());
                if !first.starts_with("CONNECT ") {
                    return socket.write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n").await;
                }
                let to = TcpStream::connect(upstream).await?;
                socket.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
                pass(socket, to, Duration::from_secs(3600)).await
            }
        })
        .await
    }

    async fn start<F, Fut>(serve: F) -> Self
    where
        F: Fn(TcpStream, Arc<Mutex<Vec<String>>>) -> Fut + Send + 'static,
        Fut: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        Self::start_at("127.0.0.1", serve).await
    }

    async fn start_at<F, Fut>(host: &str, serve: F) -> Self
    where
        F: Fn(TcpStream, Arc<Mutex<Vec<String>>>) -> Fut + Send + 'static,
        Fut: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (opened, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (count, list) = (opened.clone(), asked.clone());
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                count.fetch_add(1, Relaxed);
                tokio::spawn(serve(socket, list.clone()));
            }
        });
        Self { address, opened, asked, task }
    }

    /// Connections so far.
    pub fn opened(&self) -> usize {
        self.opened.load(Relaxed)
    }

    /// What a proxy was asked for so far: first lines of requests.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes bytes both ways until either side ends, or nothing passed for `idle`.
async fn pass(
    one: impl AsyncRead + AsyncWrite + Unpin,
    two: impl AsyncRead + AsyncWrite + Unpin,
    idle: Duration,
) -> std::io::Result<()> {
    let (mut from_one, mut to_one) = tokio::io::split(one);
    let (mut from_two, mut to_two) = tokio::io::split(two);
    let (mut up, mut down) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    loop {
        tokio::select! {
            read = from_one.read(&mut up) => match read? {
                0 => return Ok(()),
                n => to_two.write_all(&up[..n]).await?,
            },
            read = from_two.read(&mut down) => match read? {
                0 => return Ok(()),
                n => to_one.write_all(&down[..n]).await?,
            },
            () = tokio::time::sleep(idle) => return Ok(()),
        }
    }
}
