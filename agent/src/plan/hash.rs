//! The hash that decides drift: over what *we* asked for, never over what the engine made of it. Engines default,
//! reorder and drop fields, and whoever compares with their answers recreates containers for ever.
//!
//! It is keyed, since the label that carries it is readable by every container with the engine's socket, and secrets go
//! into it. It covers neither the release nor any id of the engine: unchanged containers outlive releases.

use std::collections::BTreeMap;

use copal_protocol::{
    ids::Digest,
    spec::{NetworkSpec, ServiceSpec, VolumeSpec},
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;

use crate::target::model::Secret;

/// Begins every hash; another scheme gets another number, and must then know this one too: a new agent restarts nothing.
const VERSION: &str = "v1:";

/// Labels with these prefixes steer the agent, not the container.
const STEERING: &[&str] = &["io.copal.update.", "io.balena.update."];

/// Hash of a service: image, spec, variables and secrets.
pub fn service(
    key: &[u8; 32],
    image: &Digest,
    spec: &ServiceSpec,
    env: &BTreeMap<String, String>,
    secrets: &BTreeMap<String, Secret>,
) -> String {
    let mut spec = spec.clone();
    // The order of starting is the agent's business, not the container's.
    spec.depends_on.clear();
    spec.labels.retain(|name, _| !STEERING.iter().any(|prefix| name.starts_with(prefix)));
    spec.environment.clear();
    let secrets: BTreeMap<&str, String> =
        secrets.iter().map(|(name, secret)| (name.as_str(), hex::encode(&secret.0))).collect();
    keyed(key, "service", &serde_json::json!({"image": image, "spec": spec, "env": env, "secrets": secrets}))
}

/// Hash of a network.
pub fn network(key: &[u8; 32], spec: &NetworkSpec) -> String {
    keyed(key, "network", &serde_json::json!(spec))
}

/// Hash of a volume.
pub fn volume(key: &[u8; 32], spec: &VolumeSpec) -> String {
    keyed(key, "volume", &serde_json::json!(spec))
}

fn keyed(key: &[u8; 32], kind: &str, value: &Value) -> String {
    let mut text = String::from(kind);
    canonical(value, &mut text);
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    format!("{VERSION}{}", hex::encode(mac.finalize().into_bytes()))
}

/// JSON with sorted keys and no spaces. Sorted here, not by the map type: that one keeps insertion order as soon as any
/// crate in the build asks for it.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(name, _)| name.as_str());
            out.push('{');
            for (i, (name, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(json: &str, env: &[(&str, &str)]) -> String {
        let spec: ServiceSpec = serde_json::from_str(json).unwrap();
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        service(&[7; 32], &Digest::of(b"image"), &spec, &env, &BTreeMap::new())
    }

    #[test]
    fn the_hash_of_a_spec_never_changes_between_versions_of_the_agent() {
        // If this fails, every container of every device is about to be recreated.
        assert_eq!(
            hash(
                r#"{"command":["a"],"ports":[{"target":80,"protocol":"tcp"}],"restart":"no"}"#,
                &[("A", "1")]
            ),
            "v1:3294184f2a5582f1cb6219c80ded1f95b8c58174f930c4323ae329e6da3f18c3"
        );
    }

    #[test]
    fn only_what_reaches_the_container_counts() {
        let base = hash("{}", &[]);
        for same in [
            r#"{"labels":{"io.copal.update.healthy-after":"5s"}}"#,
            r#"{"depends_on":{"db":{"condition":"service_started"}}}"#,
        ] {
            assert_eq!(hash(same, &[]), base, "{same}");
        }
        for other in
            [r#"{"labels":{"a":"b"}}"#, r#"{"command":[]}"#, r#"{"restart":"no"}"#, r#"{"tty":true}"#]
        {
            assert_ne!(hash(other, &[]), base, "{other}");
        }
        assert_ne!(hash("{}", &[("A", "1")]), base);
    }

    #[test]
    fn secrets_and_the_key_count() {
        let spec = ServiceSpec::default();
        let of = |key: u8, secret: &[u8]| {
            let secrets = BTreeMap::from([("S".to_owned(), Secret(secret.to_vec()))]);
            service(&[key; 32], &Digest::of(b""), &spec, &BTreeMap::new(), &secrets)
        };
        assert_ne!(of(1, b"a"), of(1, b"b"));
        assert_ne!(of(1, b"a"), of(2, b"a"));
    }
}
