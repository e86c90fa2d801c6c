//! From stored documents to an effective target: verification order, steps 4, 5, 7 and 8. Pure: documents, marks and time
//! are arguments.

use std::{collections::BTreeMap, sync::Arc};

use copal_protocol::{
    documents::{Release, Root},
    envelope::Envelope,
    ids::{DeviceId, Name},
    policy,
    seal::{self, SealContext, SealKey},
    verify::{self, Code, Error, ExpectedRelease, Platform, Purpose, ReleaseMarks, Verified},
};

use super::{
    model::{AppTarget, Secret},
    stored::StoredTarget,
};

/// What does not change while the agent runs.
pub(super) struct Bench<'a> {
    pub platform: &'a Platform,
    /// `linux/arm64`.
    pub oci: &'a str,
    pub device: DeviceId,
    pub seal_key: &'a SealKey,
}

/// The release of `stored`, verified against today's root.
pub(super) fn release(
    bench: &Bench<'_>,
    root: &Verified<Root>,
    marks: &ReleaseMarks,
    purpose: Purpose,
    stored: &StoredTarget,
    envelope: &[u8],
) -> Result<Verified<Release>, Error> {
    let envelope = Envelope::parse::<Release>(envelope)?;
    let expected = ExpectedRelease::app(stored.app_id, stored.release);
    verify::release(root, &expected, marks, bench.platform, purpose, &envelope)
}

/// The whole effective target: policy on what would run, variables, secrets opened, an image for this platform.
pub(super) fn effective(
    bench: &Bench<'_>,
    root: &Verified<Root>,
    stored: &StoredTarget,
    release: Verified<Release>,
) -> Result<AppTarget, Error> {
    policy::check_release(&root.policy, &release)?;
    let mut env: BTreeMap<Name, BTreeMap<String, String>> = BTreeMap::new();
    let mut secrets: BTreeMap<Name, BTreeMap<String, Secret>> = BTreeMap::new();
    for (name, service) in &release.services {
        if !service.images.contains_key(bench.oci) {
            return Err(Error::new(
                Code::Platform,
                format!(
                    "service {name} has images for {:?}, none for {}: build the release for this device's architecture",
                    service.images.keys().collect::<Vec<_>>(),
                    bench.oci
                ),
            ));
        }
        // A variable for a service the release does not have waits until one does.
        let plain = stored.env.get(name).cloned().unwrap_or_default();
        let sealed = stored.sealed.get(name).cloned().unwrap_or_default();
        let mut all = plain.clone();
        all.extend(sealed.keys().map(|k| (k.clone(), String::new())));
        policy::check_env(root.policy.env_mode, service, &all)?;
        for (variable, ciphertext) in &sealed {
            let context = SealContext {
                fleet: root.fleet_id,
                device: bench.device,
                app: stored.app_id,
                service: name,
                variable,
            };
            let secret = seal::open(bench.seal_key, &context, ciphertext)?;
            secrets.entry(name.clone()).or_default().insert(variable.clone(), Secret(secret.to_vec()));
        }
        if !plain.is_empty() {
            env.insert(name.clone(), plain);
        }
    }
    Ok(AppTarget { app_id: stored.app_id, release: Arc::new(release), env, secrets, retry: stored.retry })
}
