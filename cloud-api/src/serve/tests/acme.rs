//! A certificate by ACME, from a CA that is a few lines here: it validates by TLS-ALPN-01 as RFC 8737 says, against the
//! server that asks.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{ask, listener, start};
use crate::{
    config::{Config, Tls},
    testing::Cloud,
    tls::{Terminator, private_ca},
};

const NAME: &str = "copal.test";
const TOKEN: &str = "a-challenge";

#[derive(Default)]
struct Said {
    base: String,
    server: Option<SocketAddr>,
    thumbprint: String,
    validated: bool,
    certificate: Option<String>,
}

#[derive(Clone)]
struct Ca {
    said: Arc<Mutex<Said>>,
    params: Arc<CertificateParams>,
    key: Arc<KeyPair>,
    pem: String,
}

/// Whoever it is: the challenge certificate is signed by itself.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Looks at what the server shows under `acme-tls/1`: the digest of the key authorisation.
async fn shown(server: SocketAddr) -> Vec<u8> {
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let tcp = TcpStream::connect(server).await.unwrap();
    let name = ServerName::try_from(NAME).unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let chain = tls.get_ref().1.peer_certificates().unwrap().to_vec();
    let (_, cert) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let extension = cert.extensions().iter().find(|e| e.oid.to_id_string() == "1.3.6.1.5.5.7.1.31").unwrap();
    // An OCTET STRING of 32 bytes.
    extension.value[2..].to_vec()
}

fn part(body: &Value, name: &str) -> Value {
    let bytes = URL_SAFE_NO_PAD.decode(body[name].as_str().unwrap()).unwrap();
    serde_json::from_slice(&bytes).unwrap_or(Value::Null)
}

fn order(said: &Said) -> Value {
    let base = &said.base;
    let status = match (&said.certificate, said.validated) {
        (Some(_), _) => "valid",
        (None, true) => "ready",
        (None, false) => "pending",
    };
    json!({
        "status": status, "authorizations": [format!("{base}/authorization")],
        "finalize": format!("{base}/finalize"), "certificate": format!("{base}/certificate"),
    })
}

async fn account(State(ca): State<Ca>, Json(body): Json<Value>) -> impl IntoResponse {
    let jwk = &part(&body, "protected")["jwk"];
    let canonical =
        format!(r#"{{"crv":{},"kty":{},"x":{},"y":{}}}"#, jwk["crv"], jwk["kty"], jwk["x"], jwk["y"]);
    let mut said = ca.said.lock().unwrap();
    said.thumbprint = URL_SAFE_NO_PAD.encode(Sha256::digest(canonical));
    (StatusCode::CREATED, [("location", format!("{}/account/1", said.base))], Json(json!({})))
}

async fn new_order(State(ca): State<Ca>, Json(body): Json<Value>) -> impl IntoResponse {
    assert_eq!(part(&body, "payload")["identifiers"][0]["value"], NAME);
    let said = ca.said.lock().unwrap();
    (StatusCode::CREATED, [("location", format!("{}/order/1", said.base))], Json(order(&said)))
}

async fn authorization(State(ca): State<Ca>) -> Json<Value> {
    let said = ca.said.lock().unwrap();
    let status = if said.validated { "valid" } else { "pending" };
    let url = format!("{}/challenge", said.base);
    Json(json!({
        "status": status, "identifier": {"type": "dns", "value": NAME},
        "challenges": [{"type": "tls-alpn-01", "url": url, "token": TOKEN}],
    }))
}

async fn challenge(State(ca): State<Ca>) -> Json<Value> {
    let (server, expected) = {
        let said = ca.said.lock().unwrap();
        (said.server.unwrap(), Sha256::digest(format!("{TOKEN}.{}", said.thumbprint)))
    };
    let right = shown(server).await == expected.as_slice();
    ca.said.lock().unwrap().validated = right;
    Json(json!({}))
}

async fn finalize(State(ca): State<Ca>, Json(body): Json<Value>) -> Json<Value> {
    let csr = URL_SAFE_NO_PAD.decode(part(&body, "payload")["csr"].as_str().unwrap()).unwrap();
    let request = CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
    let certificate = request.signed_by(&Issuer::from_params(&ca.params, &*ca.key)).unwrap();
    let mut said = ca.said.lock().unwrap();
    assert!(said.validated, "nothing is certified before it was validated");
    said.certificate = Some(certificate.pem() + &ca.pem);
    Json(order(&said))
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { said: Arc::default(), params: Arc::new(params), key: Arc::new(key), pem }
    }

    fn router(&self) -> Router {
        let directory = |State(ca): State<Self>| async move {
            let base = ca.said.lock().unwrap().base.clone();
            Json(json!({
                "newNonce": format!("{base}/nonce"), "newAccount": format!("{base}/account"),
                "newOrder": format!("{base}/order"),
            }))
        };
        Router::new()
            .route("/directory", get(directory))
            .route("/nonce", get(|| async { [("replay-nonce", "n")] }))
            .route("/account", post(account))
            .route("/order", post(new_order))
            .route("/order/1", post(|State(ca): State<Self>| async move { Json(order(&ca.said.lock().unwrap())) }))
            .route("/authorization", post(authorization))
            .route("/challenge", post(challenge))
            .route("/finalize", post(finalize))
            .route(
                "/certificate",
                post(|State(ca): State<Self>| async move { ca.said.lock().unwrap().certificate.clone().unwrap() }),
            )
            .layer(axum::middleware::map_request(|mut request: axum::extract::Request| async move {
                // ACME bodies are application/jose+json.
                let json = axum::http::HeaderValue::from_static("application/json");
                request.headers_mut().insert(axum::http::header::CONTENT_TYPE, json);
                request
            }))
            .with_state(self.clone())
    }
}

#[tokio::test]
async fn a_certificate_comes_by_acme() {
    let cloud = Cloud::new().await;
    let dir = tempfile::tempdir().unwrap();
    // The CA's own API, under a private CA as a CA on a local network has it.
    let of_ca = Config { tls: Tls::PrivateCa, ..Config::local(dir.path().join("ca")) };
    std::fs::create_dir_all(&of_ca.data).unwrap();
    private_ca::init(&of_ca.tls_dir(), &["localhost".to_owned()], SystemTime::now()).unwrap();
    let ca = Ca::new();
    let api = start(ca.router(), Terminator::start(&of_ca).unwrap(), 20).await;
    let base = format!("https://localhost:{}", api.address.port());

    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    {
        let mut said = ca.said.lock().unwrap();
        (said.base, said.server) = (base.clone(), Some(address));
    }
    let tls = Tls::Acme {
        domains: vec![NAME.to_owned()],
        email: Some("anna@example.org".to_owned()),
        directory: Some(format!("{base}/directory")),
        directory_ca: Some(of_ca.tls_dir().join("ca.crt")),
    };
    let config = Config { tls, ..cloud.app.config.clone() };
    let terminator = Terminator::start(&config).unwrap();
    assert_eq!(terminator.as_ref().unwrap().pins, Vec::<String>::new());
    tokio::spawn(listener::run(socket, terminator, cloud.router.clone(), CancellationToken::new(), 20));

    let mut roots = RootCertStore::empty();
    roots.add(rustls::pki_types::pem::PemObject::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let client =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let mut answer = None;
    for _ in 0..100 {
        let tcp = TcpStream::connect(address).await.unwrap();
        if let Ok(tls) = connector.connect(ServerName::try_from(NAME).unwrap(), tcp).await {
            answer = Some(ask(tls, "/healthz").await.unwrap());
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(answer.expect("no certificate came").starts_with("HTTP/1.1 200"));
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(config.tls_dir()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "keys are inside");
}
