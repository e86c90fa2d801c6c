//! Over real sockets: bounds, TLS, the end.

mod acme;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{Router, routing::get};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::{layers, listener};
use crate::{
    config::{Config, Tls},
    testing::Cloud,
    tls::{Terminator, private_ca},
};

struct Running {
    address: std::net::SocketAddr,
    stopping: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

async fn start(router: Router, terminator: Option<Terminator>, capacity: usize) -> Running {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let stopping = CancellationToken::new();
    let ended = tokio::spawn(listener::run(socket, terminator, router, stopping.clone(), capacity));
    Running { address, stopping, ended }
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> std::io::Result<String> {
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

#[tokio::test]
async fn silent_peers_do_not_keep_others_out() {
    let cloud = Cloud::new().await;
    let server = start(cloud.router.clone(), None, 20).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(b"GET /healthz HT").await.unwrap();
        silent.push(socket);
        if silent.len() % 50 == 0 {
            let answer = ask(TcpStream::connect(server.address).await.unwrap(), "/healthz").await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }
    let mut closed = 0;
    for mut socket in silent {
        let mut byte = [0];
        if let Ok(ended) = tokio::time::timeout(Duration::from_millis(5), socket.read(&mut byte)).await {
            assert!(!matches!(ended, Ok(n) if n > 0), "a half request was answered");
            closed += 1;
        }
    }
    assert!(closed >= 180, "only {closed} of the 200 went");
}

#[tokio::test]
async fn nor_do_those_who_asked_once_and_stay() {
    let cloud = Cloud::new().await;
    let server = start(cloud.router.clone(), None, 20).await;
    let mut idle = Vec::new();
    for _ in 0..60 {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 15];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        idle.push(socket);
    }
}

#[tokio::test]
async fn a_head_too_large_is_refused() {
    let cloud = Cloud::new().await;
    let server = start(cloud.router.clone(), None, 20).await;
    let path = format!("/{}", "a".repeat(100_000));
    let answer = ask(TcpStream::connect(server.address).await.unwrap(), &path).await.unwrap_or_default();
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
}

#[tokio::test]
async fn what_is_in_hand_finishes_when_the_server_stops() {
    let slow = Router::new().route(
        "/slow",
        get(|| async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            "done"
        }),
    );
    let server = start(slow, None, 20).await;
    let socket = TcpStream::connect(server.address).await.unwrap();
    let asked = tokio::spawn(ask(socket, "/slow"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stopping.cancel();
    assert!(asked.await.unwrap().unwrap().ends_with("done"));
    server.ended.await.unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_panic_is_one_failed_request() {
    let cloud = Cloud::new().await;
    async fn boom() {
        panic!("a bug");
    }
    let rooms = Router::new().route("/api/boom", get(boom)).route("/healthz", get(|| async { "ok" }));
    let server = start(layers::around(rooms, &cloud.app).with_state(cloud.app.clone()), None, 20).await;
    let answer = ask(TcpStream::connect(server.address).await.unwrap(), "/api/boom").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("\"code\":\"internal\""), "{answer}");
    assert!(!answer.contains("a bug"));
    let answer = ask(TcpStream::connect(server.address).await.unwrap(), "/healthz").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"));
}

/// A private CA in a folder, and a server under it.
async fn secured(cloud: &Cloud, names: &[&str]) -> (Config, Terminator, Running) {
    let config = Config { tls: Tls::PrivateCa, ..cloud.app.config.clone() };
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    private_ca::init(&config.tls_dir(), &names, SystemTime::now()).unwrap();
    let terminator = Terminator::start(&config).unwrap().unwrap();
    let server = start(cloud.router.clone(), Some(terminator.clone()), 20).await;
    (config, terminator, server)
}

async fn handshake(
    config: &Config,
    server: &Running,
    name: &str,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(config.tls_dir().join("ca.crt")).unwrap()).unwrap();
    let client =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, tcp).await
}

#[tokio::test]
async fn under_the_private_ca_the_chain_shows_what_devices_pin() {
    let cloud = Cloud::new().await;
    let (config, terminator, server) = secured(&cloud, &["copal.test", "127.0.0.1"]).await;
    for name in ["copal.test", "127.0.0.1"] {
        let tls = handshake(&config, &server, name).await.unwrap();
        let chain = tls.get_ref().1.peer_certificates().unwrap().to_vec();
        let pins: Vec<String> = chain
            .iter()
            .map(|cert| {
                let (_, cert) = x509_parser::parse_x509_certificate(cert).unwrap();
                BASE64.encode(Sha256::digest(cert.tbs_certificate.subject_pki.raw))
            })
            .collect();
        assert_eq!(chain.len(), 2, "leaf and CA");
        assert_eq!(pins[1..], terminator.pins);
        assert!(ask(tls, "/healthz").await.unwrap().starts_with("HTTP/1.1 200"));
    }
    assert!(handshake(&config, &server, "other.test").await.is_err(), "a name it was not made for");
    let plain = ask(TcpStream::connect(server.address).await.unwrap(), "/healthz").await.unwrap_or_default();
    assert!(!plain.contains("200"), "plain HTTP gets nothing");
}

#[tokio::test]
async fn a_replaced_certificate_is_served_and_a_broken_one_is_not() {
    let cloud = Cloud::new().await;
    let (config, terminator, server) = secured(&cloud, &["copal.test"]).await;
    let leaf = async || {
        let tls = handshake(&config, &server, "copal.test").await.unwrap();
        tls.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let first = leaf().await;
    std::fs::write(config.tls_dir().join("leaf.crt"), "gibberish").unwrap();
    terminator.reload();
    assert_eq!(leaf().await, first, "the one before stays in use");
    private_ca::init(&config.tls_dir(), &["copal.test".to_owned()], SystemTime::now()).unwrap();
    terminator.reload();
    assert_ne!(leaf().await, first);
}
