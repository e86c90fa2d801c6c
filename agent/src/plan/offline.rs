//! Planning from files, with no engine and no cloud: `copal-agent plan --state FILE --target FILE`.

use std::{collections::BTreeMap, sync::Arc};

use copal_protocol::{
    documents::Release,
    ids::{AppId, Name, Sha256Hex},
};
use serde::{Deserialize, Serialize};

use super::{
    Plan, Policy, labels,
    wanted::{self, Context, Env, Wanted, WantedApp},
};
use crate::{
    apply::ports::ApplyError,
    engine::{Container, Health, ImageId, RunState},
    observe::{Seen, SeenNetwork, SeenVolume, State},
};

/// A target as a file: releases in the clear, unverified. Good for looking, never for running.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TargetFile {
    /// By app.
    pub apps: BTreeMap<AppId, TargetApp>,
}

/// An app of a [`TargetFile`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetApp {
    /// Its release.
    pub release: Release,
    /// Variables by service.
    #[serde(default)]
    pub env: Env,
    /// As if it were on trial: nothing is touched before all images are here.
    #[serde(default)]
    pub whole: bool,
}

/// What a [`TargetFile`] wants of this device.
///
/// # Errors
/// `E_PLATFORM` where a release has no image for it.
pub fn wanted(cx: &Context, file: &TargetFile) -> Result<Wanted, ApplyError> {
    let mut out = Wanted::default();
    for (id, app) in &file.apps {
        let bytes = serde_json::to_vec(&app.release).unwrap_or_default();
        let mut one = wanted::app(cx, *id, &app.release, Sha256Hex::of(&bytes), &app.env, &BTreeMap::new())?;
        one.whole = app.whole;
        out.apps.insert(*id, Arc::new(one));
    }
    Ok(out)
}

/// Plans from what two files hold.
///
/// # Errors
/// As [`wanted`].
pub fn plan(cx: &Context, state: &State, target: &TargetFile) -> Result<Plan, ApplyError> {
    Ok(super::plan(state, &wanted(cx, target)?, &Policy { prefix: cx.prefix.clone(), ..Policy::default() }))
}

/// What runs, as a file: a look at an engine, or the releases that run exactly as they should. (The hashes of a look are
/// keyed with its device's secret; only a release can be compared with a release anywhere.)
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StateFile {
    /// Releases.
    Releases(TargetFile),
    /// A look.
    Look(State),
}

impl StateFile {
    /// The state it speaks of.
    ///
    /// # Errors
    /// As [`wanted`].
    pub fn state(self, cx: &Context) -> Result<State, ApplyError> {
        match self {
            Self::Releases(file) => Ok(running(cx, &wanted(cx, &file)?)),
            Self::Look(state) => Ok(state),
        }
    }
}

/// The id of the `n`-th container of [`running`].
pub(crate) fn made_up_id(n: usize) -> String {
    format!("{n:012x}")
}

/// The state in which this is exactly what runs, under made-up ids.
#[must_use]
pub fn running(cx: &Context, wanted: &Wanted) -> State {
    let mut state = State::default();
    for (app, want) in &wanted.apps {
        let seen = state.apps.entry(*app).or_default();
        for (i, (network, one)) in want.networks.iter().enumerate() {
            let full = labels::object_name(&cx.prefix, *app, network.as_str());
            let seen_one = SeenNetwork { hash: one.hash.clone(), id: format!("net{i}"), name: full };
            seen.networks.insert(network.clone(), vec![seen_one]);
        }
        for (volume, one) in &want.volumes {
            let full = labels::object_name(&cx.prefix, *app, volume.as_str());
            seen.volumes.insert(volume.clone(), SeenVolume { hash: one.hash.clone(), name: full });
        }
        for (i, service) in want.services.keys().enumerate() {
            let one = container(cx, want, *app, service, &seen.networks, i);
            seen.services.insert(service.clone(), vec![one]);
        }
    }
    state
}

fn container(
    cx: &Context,
    want: &WantedApp,
    app: AppId,
    service: &Name,
    networks: &BTreeMap<Name, Vec<SeenNetwork>>,
    i: usize,
) -> Seen {
    let one = &want.services[service];
    Seen {
        hash: one.hash.clone(),
        container: Container {
            id: made_up_id(i + 1),
            name: labels::object_name(&cx.prefix, app, service.as_str()),
            image: ImageId(one.image.config_digest.to_string()),
            labels: BTreeMap::new(),
            state: RunState::Running,
            health: Health::None,
            exit_code: 0,
            restarts: 0,
            started_at: "t".into(),
            grace_s: 10,
            networks: one
                .joins
                .iter()
                .filter_map(|(name, join)| {
                    Some((join.network.clone(), networks.get(name)?.first()?.id.clone()))
                })
                .collect(),
            shares: one
                .peers
                .iter()
                .filter_map(|peer| Some(made_up_id(want.services.keys().position(|s| s == peer)? + 1)))
                .collect(),
            privileged: false,
            unreadable: None,
        },
    }
}

/// A made-up app of `n` services on one network, as benches use it: a third with a volume, each depending on the first.
#[must_use]
pub fn sample(n: usize) -> TargetFile {
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let services: serde_json::Map<String, serde_json::Value> = (0..n)
        .map(|i| {
            let mut spec = serde_json::json!({"command": ["run", i.to_string()], "environment": {"N": i.to_string()}});
            if i % 3 == 0 {
                spec["mounts"] = serde_json::json!({"/data": {"type": "volume", "source": format!("data{i}")}});
            }
            if i > 0 {
                spec["depends_on"] = serde_json::json!({"s0": {"condition": "service_started"}});
            }
            let image = serde_json::json!({"repo": "bench/app", "manifest_digest": digest, "config_digest": digest,
                "config_size": 1, "size": 1, "layers": []});
            let images = serde_json::json!({"linux/amd64": image, "linux/arm64": image, "linux/arm": image});
            (format!("s{i}"), serde_json::json!({"spec": spec, "images": images}))
        })
        .collect();
    let app = "00112233445566778899aabbccddeeff";
    let release = serde_json::json!({"spec": 1, "fleet_id": app, "kind": "app", "app_id": app, "counter": 1,
        "version": "1.0.0", "created_at": 1, "services": services});
    let release = serde_json::from_value(release).expect("a well-formed release");
    let app = app.parse().expect("a well-formed id");
    TargetFile { apps: BTreeMap::from([(app, TargetApp { release, env: Env::new(), whole: false })]) }
}
