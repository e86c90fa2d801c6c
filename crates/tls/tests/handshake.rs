//! Whole handshakes in memory, against chains made for each case.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use copal_tls::{Certificate, Clock, client_config, probe_config};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};

const HOST: &str = "cloud.example.org";
/// 2025-06-01
const NOW: u64 = 1_748_736_000;

fn at(now: u64) -> Clock {
    Arc::new(move || now)
}

struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = date_time_ymd(2025, 1, 1);
    params.not_after = date_time_ymd(2026, 1, 1);
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.distinguished_name.push(rcgen::DnType::CommonName, name);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.not_before = date_time_ymd(2020, 1, 1);
    ca.not_after = date_time_ymd(2030, 1, 1);
    ca
}

/// Leaf, intermediate, private CA.
fn chain() -> Chain {
    let root_key = KeyPair::generate().unwrap();
    let root = ca_params("root").self_signed(&root_key).unwrap();
    let root_issuer = Issuer::new(ca_params("root"), &root_key);
    let middle_key = KeyPair::generate().unwrap();
    let middle = ca_params("middle").signed_by(&middle_key, &root_issuer).unwrap();
    let middle_issuer = Issuer::new(ca_params("middle"), &middle_key);
    let key = KeyPair::generate().unwrap();
    let leaf = params(HOST).signed_by(&key, &middle_issuer).unwrap();
    Chain { certificates: vec![leaf.der().clone(), middle.der().clone(), root.der().clone()], key }
}

fn pin(certificate: &CertificateDer<'_>) -> String {
    Certificate::from_der(certificate).unwrap().pin()
}

fn server(chain: &Chain) -> Arc<ServerConfig> {
    struct Fixed(Arc<rustls::sign::CertifiedKey>);
    impl std::fmt::Debug for Fixed {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Fixed")
        }
    }
    impl rustls::server::ResolvesServerCert for Fixed {
        fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }
    let provider = rustls::crypto::ring::default_provider();
    let key = PrivateKeyDer::try_from(chain.key.serialize_der()).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    // Unchecked on purpose: some chains here are broken.
    let certified = rustls::sign::CertifiedKey::new(chain.certificates.clone(), key);
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Fixed(Arc::new(certified))));
    Arc::new(config)
}

fn handshake(client: ClientConfig, chain: &Chain, host: &str) -> Result<(), String> {
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(server(chain)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut bytes.as_slice()).unwrap();
        server.process_new_packets().map_err(|e| format!("server: {e}"))?;
        let mut bytes = Vec::new();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut bytes.as_slice()).unwrap();
        client.process_new_packets().map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn connect(chain: &Chain, pins: &[String], now: u64, host: &str) -> Result<(), String> {
    handshake(client_config(pins, &at(now)).unwrap(), chain, host)
}

#[test]
fn a_pin_on_the_leaf_an_intermediate_or_the_private_ca_is_enough() {
    let chain = chain();
    for certificate in &chain.certificates {
        assert_eq!(connect(&chain, &[pin(certificate)], NOW, HOST), Ok(()));
    }
}

#[test]
fn any_one_of_several_pins_is_enough_so_that_they_can_rotate() {
    let (chain, other) = (chain(), self::chain());
    let pins = [pin(&other.certificates[0]), pin(&chain.certificates[2])];
    assert_eq!(connect(&chain, &pins, NOW, HOST), Ok(()));
}

#[test]
fn a_self_signed_server_marked_as_ca_is_accepted_by_its_own_pin() {
    let key = KeyPair::generate().unwrap();
    let mut params = params(HOST);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let pin = pin(&certificate);
    let chain = Chain { certificates: vec![certificate], key };
    assert_eq!(connect(&chain, &[pin], NOW, HOST), Ok(()));
}

#[test]
fn another_key_is_refused() {
    let wrong = pin(&chain().certificates[0]);
    let error = connect(&chain(), &[wrong], NOW, HOST).unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[test]
fn another_host_is_refused_whatever_is_pinned() {
    let chain = chain();
    for certificate in &chain.certificates {
        let error = connect(&chain, &[pin(certificate)], NOW, "other.example.org").unwrap_err();
        assert!(error.contains("not valid for name"), "{error}");
    }
}

#[test]
fn the_given_clock_judges_expiry() {
    let chain = chain();
    for certificate in &chain.certificates {
        let late = connect(&chain, &[pin(certificate)], NOW + 400 * 86_400, HOST).unwrap_err();
        assert!(late.to_lowercase().contains("expired"), "{late}");
        let early = connect(&chain, &[pin(certificate)], 0, HOST).unwrap_err();
        assert!(early.replace(' ', "").to_lowercase().contains("notvalidyet"), "{early}");
    }
}

#[test]
fn a_flipped_signature_is_refused_below_the_pinned_certificate() {
    for broken in [0, 1] {
        let mut chain = chain();
        let mut der = chain.certificates[broken].to_vec();
        *der.last_mut().unwrap() ^= 1;
        chain.certificates[broken] = der.into();
        let ca = pin(&chain.certificates[2]);
        assert!(connect(&chain, &[ca], NOW, HOST).is_err(), "certificate {broken}");
    }
}

#[test]
fn showing_the_pinned_certificate_beside_a_chain_of_ones_own_is_refused() {
    let honest = chain();
    let mut forged = chain();
    forged.certificates.push(honest.certificates[2].clone());
    assert!(connect(&forged, &[pin(&honest.certificates[2])], NOW, HOST).is_err());
    // The honest leaf appended: known, but its key was not used.
    forged.certificates.push(honest.certificates[0].clone());
    assert!(connect(&forged, &[pin(&honest.certificates[0])], NOW, HOST).is_err());
}

#[test]
fn the_pinned_leaf_without_its_key_is_refused() {
    let honest = chain();
    let thief = Chain { certificates: honest.certificates.clone(), key: KeyPair::generate().unwrap() };
    assert!(connect(&thief, &[pin(&honest.certificates[0])], NOW, HOST).is_err());
}

#[test]
fn without_pins_a_private_ca_is_refused() {
    let error = connect(&chain(), &[], NOW, HOST).unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[test]
fn a_malformed_pin_is_refused_not_skipped() {
    for bad in ["", "abc", "sha256/AAAA", &"A".repeat(44)] {
        assert!(client_config(&[bad.to_owned()], &at(NOW)).is_err(), "{bad}");
    }
}

#[test]
fn a_probe_shows_the_chain_and_accepts_nothing() {
    let chain = chain();
    let (config, probe) = probe_config(&at(NOW)).unwrap();
    assert!(handshake(config, &chain, HOST).is_err());
    let pins: Vec<_> = probe.chain().iter().map(Certificate::pin).collect();
    assert_eq!(pins, chain.certificates.iter().map(pin).collect::<Vec<_>>());
}
