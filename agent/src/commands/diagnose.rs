//! `copal-agent diagnose`: the health checks, for a person at the device. Works with the agent running or not, and with the
//! cloud or the engine away.

use std::path::Path;

use copal_protocol::diagnosis::{PROBES, Verdict};

use super::rooms::Rooms;
use crate::{
    clock::Clock,
    cloud::{Address, Cloud, Limits},
    diagnostics::{self, Deps, Link, door},
    engine::Engine,
    identity::Identity,
    settings::{self, Places},
    state::StateError,
};

/// Which checks, and how they are told.
#[derive(Debug, clap::Args)]
pub struct DiagnoseArgs {
    /// Only these checks; all where none is named.
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// For programs.
    #[arg(long)]
    pub json: bool,
    /// What checks there are, and what each looks at.
    #[arg(long, conflicts_with_all = ["names", "json"])]
    pub list: bool,
}

/// Makes the checks and prints what they found; whether nothing failed.
///
/// # Errors
/// A name that is no check.
pub fn diagnose(places: &Places, args: &DiagnoseArgs) -> anyhow::Result<bool> {
    if args.list {
        for (name, about) in PROBES {
            println!("{name:<14} {about}");
        }
        return Ok(true);
    }
    diagnostics::choose(&args.names)?;
    let diagnosis = with_runtime(async {
        let beside = Beside::open(places);
        diagnostics::diagnose(&beside.deps, &args.names).await
    })??;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&diagnosis)?);
    } else {
        print!("{}", diagnosis.to_text());
    }
    Ok(diagnosis.worst() != Verdict::Failed)
}

/// Runs it to its end. What still hangs then (a disk, a device) is left behind: the program ends.
pub(super) fn with_runtime<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(done)
}

/// What checks look at from a program beside the agent, or in its place.
pub(super) struct Beside {
    /// That.
    pub deps: Deps,
    /// The rooms, where no agent has them.
    pub rooms: Option<Rooms>,
    /// Held while the rooms are open, so that no agent starts over the same state.
    _lock: Option<Box<dyn Send>>,
}

impl Beside {
    pub fn open(places: &Places) -> Self {
        let engine = Engine::connect(places.docker_host.as_deref());
        let deps = |clock, link| Deps::new(places.clone(), clock, engine.clone(), link, false);
        let without = |why: String, deaf| {
            let (cloud, why) = match stranger(places) {
                Ok(cloud) => (Some(cloud), why),
                Err(missing) => (None, missing),
            };
            Self {
                deps: deps(Clock::default(), Link::None { cloud: cloud.map(Box::new), why, deaf }),
                rooms: None,
                _lock: None,
            }
        };
        if door::is_open(&places.run_dir) {
            let bases = settings::load(places.config.as_deref()).map(|joined| vec![joined.file.cloud_url]);
            let link = Link::Agent { bases: bases.unwrap_or_default() };
            return Self { deps: deps(Clock::default(), link), rooms: None, _lock: None };
        }
        // Opening the rooms of a device that never started would make its keys; that is the agent's to do.
        if !has_identity(&places.state_dir) {
            return without(
                format!(
                    "{} holds no identity that can be read: the agent never ran here, or this is not root",
                    places.state_dir.display()
                ),
                false,
            );
        }
        let rooms = match Rooms::open(places) {
            Ok(rooms) => rooms,
            Err(e) => return without(format!("{e:#}"), false),
        };
        let lock = match rooms.lock() {
            Ok(lock) => lock,
            Err(StateError::Busy { .. }) => {
                let why = format!(
                    "the agent that runs has the login, and does not answer in {}",
                    places.run_dir.display()
                );
                return without(why, true);
            }
            Err(e) => return without(e.to_string(), false),
        };
        let clock = rooms.clock.clone();
        let link = if rooms.session.identity(Identity::device_id).is_some() {
            Link::Own { session: rooms.session.clone(), store: rooms.store.clone() }
        } else {
            return Self {
                _lock: Some(Box::new(lock)),
                ..without("this device is not enrolled yet".to_owned(), false)
            };
        };
        Self { deps: deps(clock, link), rooms: Some(rooms), _lock: Some(Box::new(lock)) }
    }
}

fn has_identity(state_dir: &Path) -> bool {
    ["identity.a", "identity.b"].iter().any(|copy| state_dir.join(copy).exists())
}

/// A client without a login.
fn stranger(places: &Places) -> Result<Cloud, String> {
    let file = settings::load(places.config.as_deref()).map_err(|e| e.to_string())?.file;
    let address = Address::new(&[file.cloud_url], &file.tls_pins)?;
    Ok(Cloud::new(address, Clock::default(), Limits::default()))
}
