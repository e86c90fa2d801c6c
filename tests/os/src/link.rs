//! The network between machine and cloud: a relay that can be cut, and that counts.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A relay to one address. TLS passes through it untouched.
pub struct Link {
    pub port: u16,
    inner: Arc<Inner>,
}

struct Inner {
    up: watch::Sender<bool>,
    /// Bytes towards the machine.
    down_bytes: AtomicU64,
    slow: AtomicBool,
}

impl Link {
    pub async fn to(address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let inner = Arc::new(Inner {
            up: watch::channel(true).0,
            down_bytes: AtomicU64::new(0),
            slow: AtomicBool::new(false),
        });
        let (address, shared) = (address.to_owned(), inner.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(relay(stream, address.clone(), shared.clone()));
            }
        });
        Self { port, inner }
    }

    /// Ends every connection and takes no more.
    pub fn cut(&self) {
        self.inner.up.send_replace(false);
    }

    pub fn mend(&self) {
        self.inner.up.send_replace(true);
    }

    /// About 2 MiB/s for each connection, or as fast as it goes: there must be time to cut the power in.
    pub fn slow(&self, slow: bool) {
        self.inner.slow.store(slow, Ordering::Relaxed);
    }

    /// Bytes the machine was sent so far.
    pub fn down_bytes(&self) -> u64 {
        self.inner.down_bytes.load(Ordering::Relaxed)
    }
}

async fn relay(machine: TcpStream, address: String, inner: Arc<Inner>) {
    let mut up = inner.up.subscribe();
    if !*up.borrow_and_update() {
        return;
    }
    let Ok(cloud) = TcpStream::connect(&address).await else { return };
    let (mut from_machine, mut to_machine) = machine.into_split();
    let (mut from_cloud, mut to_cloud) = cloud.into_split();
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = from_cloud.read(&mut buffer).await.unwrap_or(0);
            if n == 0 || to_machine.write_all(&buffer[..n]).await.is_err() {
                return;
            }
            inner.down_bytes.fetch_add(n as u64, Ordering::Relaxed);
            if inner.slow.load(Ordering::Relaxed) {
                tokio::time::sleep(std::time::Duration::from_millis(n as u64 / 2048)).await;
            }
        }
    };
    tokio::select! {
        _ = tokio::io::copy(&mut from_machine, &mut to_cloud) => {}
        () = down => {}
        _ = up.wait_for(|up| !up) => {}
    }
}
