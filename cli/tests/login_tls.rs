//! Signing in to a server under a private CA: nothing is sent before its key is trusted.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};

struct Server {
    url: String,
    ca_pem: String,
    pin: String,
    heard: Arc<Mutex<String>>,
}

/// Answers every request as `/me` would, and keeps what it decrypted.
fn server() -> Server {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &Issuer::new(ca, &ca_key)).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone(), ca_cert.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let heard = Arc::new(Mutex::new(String::new()));
    let ears = Arc::clone(&heard);
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut tls =
                StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), socket.unwrap());
            let mut bytes = [0; 4096];
            let Ok(count) = tls.read(&mut bytes) else { continue };
            ears.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            let body = r#"{"email":"anna@example.org","role":"owner"}"#;
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = tls.write_all(format!("{head}{body}").as_bytes());
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
    });
    let pin = copal_tls::Certificate::from_der(ca_cert.der()).unwrap().pin();
    Server { url, ca_pem: ca_cert.pem(), pin, heard }
}

fn login(server: &Server, more: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("ca.pem"), &server.ca_pem).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_copal"))
        .args(["login", &server.url, "--token-stdin"])
        .args(more)
        .env_clear()
        .env("COPAL_HOME", home.path().join("home"))
        .current_dir(home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(b"copal_secret\n");
    child.wait_with_output().unwrap()
}

#[test]
fn the_pin_or_the_file_of_a_private_ca_is_enough() {
    let server = server();
    for trust in [["--pin", server.pin.as_str()], ["--ca-file", "ca.pem"]] {
        let output = login(&server, &trust);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains(&server.pin));
    }
    assert!(server.heard.lock().unwrap().to_lowercase().contains("authorization: bearer copal_secret"));
}

#[test]
fn an_unknown_or_wrong_key_gets_nothing_and_is_named() {
    let server = server();
    let wrong = format!("{}=", "A".repeat(43));
    for trust in [&[][..], &["--pin", &wrong][..]] {
        let output = login(&server, trust);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(6), "{error}");
        assert!(error.contains("certificate_refused") && error.contains(&server.pin), "{error}");
    }
    assert_eq!(*server.heard.lock().unwrap(), "", "not a byte was sent to a server that is not trusted");
}
