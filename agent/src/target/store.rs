//! Everything signed that the device holds, on disk and judged: the root, the newest assignment, releases, and what was
//! committed, is on trial or is parked.
//!
//! Order of writes: a document is on disk before anything names it; marks rise before the target that raised them is
//! used; a floor rises only with a commit, and is found again from the committed release should a power cut fall between.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use copal_protocol::{
    clock,
    documents::{Assignment, HostTarget, Root},
    envelope::Envelope,
    ids::{AppId, Sha256Hex},
    verify::{self, AssignmentMark, Code, DeviceIdentity, Error, Platform, Purpose, Verified},
    window::Window,
};

use super::{
    judge::{self, Bench},
    model::{AppTarget, HostAim, HostPart, Target},
    stored::{Accepted, AppRecord, HostRecord, Marks, StoredTarget},
};
use crate::{
    clock::Clock,
    identity::Session,
    state::{StateDir, StateError},
};

/// How many earlier committed targets are kept to fall back on when the newest is revoked.
const EARLIER: usize = 2;

/// What the store needs to know of its device.
pub struct StoreSettings {
    /// For `compat`.
    pub platform: Platform,
    /// `linux/arm64`.
    pub oci: String,
    /// The floor that the operating system's image brings along: it holds where the device's memory was lost.
    pub os_floor: u64,
    /// Gets its floor from what is stored.
    pub clock: Clock,
}

/// The documents held, and the judgement over them.
pub struct Store {
    state: Arc<StateDir>,
    session: Arc<Session>,
    settings: StoreSettings,
    inner: Mutex<Inner>,
}

struct Inner {
    root: Verified<Root>,
    marks: Marks,
    accepted: Option<Accepted>,
    apps: BTreeMap<AppId, AppRecord>,
    hosts: BTreeMap<HostPart, HostRecord>,
    /// What the keys of this run stand for: the ledger is given opened targets and stores sealed ones.
    known: HashMap<Sha256Hex, StoredTarget>,
    /// Files that were lost, for the status.
    lost: Vec<String>,
    /// Apps whose record was lost: what they run may have been committed.
    unsure: BTreeSet<AppId>,
}

/// The targets to run now, and which apps' newest was refused, and why.
#[derive(Debug, Default)]
pub struct Resolved {
    /// By app.
    pub apps: BTreeMap<AppId, AppTarget>,
    /// By app.
    pub refused: BTreeMap<AppId, Error>,
    /// The refused apps of which nothing ever began here: there is nothing to keep up.
    pub never_begun: BTreeSet<AppId>,
    /// The operating system's and the agent's.
    pub hosts: BTreeMap<HostPart, HostAim>,
    /// Why a host's newest was refused.
    pub refused_hosts: BTreeMap<HostPart, Error>,
    /// When the device may reboot.
    pub reboot_window: Option<Window>,
    /// How often it checks itself.
    pub check_every_s: Option<u32>,
    /// (assign_epoch, seq) all of this comes from.
    pub order: (u64, u64),
}

impl Resolved {
    /// As the supervisor takes it.
    #[must_use]
    pub fn into_target(mut self, may_install: bool) -> Target {
        let mut aim = |part| self.hosts.remove(&part).unwrap_or_default();
        let (os, agent) = (aim(HostPart::Os), aim(HostPart::Agent));
        Target {
            order: self.order,
            apps: self.apps,
            os,
            agent,
            reboot_window: self.reboot_window,
            check_every_s: self.check_every_s,
            may_install,
            paused: false,
        }
    }
}

/// What of an assignment was refused, and why.
#[derive(Debug, Default)]
pub struct Refused {
    /// By app.
    pub apps: BTreeMap<AppId, Error>,
    /// The operating system's, the agent's.
    pub hosts: BTreeMap<HostPart, Error>,
}

impl Refused {
    /// Whether nothing was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.apps.is_empty() && self.hosts.is_empty()
    }
}

impl Store {
    /// Reads what is stored; pins `first` as the root where there is none yet. A root pinned before stays, whatever
    /// `copal.json` says now.
    ///
    /// # Errors
    /// [`StateError`] where the disk fails or the root is damaged in both copies.
    pub fn open(
        state: Arc<StateDir>,
        session: Arc<Session>,
        settings: StoreSettings,
        first: (&Verified<Root>, &[u8]),
    ) -> Result<Self, StateError> {
        let mut lost = Vec::new();
        let fleet = session.identity(crate::identity::Identity::fleet_id);
        let root = if let Some(bytes) = state.load_bytes("root")? {
            parse_root(&bytes, fleet)
                .map_err(|e| StateError::Content { path: state.path().join("root"), why: e.to_string() })?
        } else {
            state.save_bytes("root", first.1)?;
            tracing::info!(fingerprint = %first.0.sha256(), version = first.0.version, "the owner's root is pinned");
            first.0.clone()
        };
        let mut marks: Marks = or_lost(state.load("marks"), &mut lost)?.unwrap_or_default();
        let accepted: Option<Accepted> = or_lost(state.load("target"), &mut lost)?;
        let (mut apps, mut unsure) = (BTreeMap::new(), BTreeSet::new());
        for name in state.names("app-")? {
            let Ok(id) = name["app-".len()..].parse::<AppId>() else { continue };
            match or_lost(state.load::<AppRecord>(&name), &mut lost)? {
                Some(record) => drop(apps.insert(id, record)),
                None => drop(unsure.insert(id)),
            }
        }
        let mut hosts = BTreeMap::new();
        for part in [HostPart::Os, HostPart::Agent] {
            if let Some(record) = or_lost(state.load::<HostRecord>(hosts::file(part)), &mut lost)? {
                hosts.insert(part, record);
            }
        }
        marks.clock_floor = clock::raised_by_root(marks.clock_floor, &root);
        settings.clock.raise(marks.clock_floor);
        let store = Self {
            state,
            session,
            settings,
            inner: Mutex::new(Inner {
                root,
                marks,
                accepted,
                apps,
                hosts,
                known: HashMap::new(),
                lost,
                unsure,
            }),
        };
        store.mend_floors();
        Ok(store)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A power cut between a commit and its floor: the committed release says what the floor is.
    fn mend_floors(&self) {
        let mut inner = self.lock();
        let committed: Vec<StoredTarget> =
            inner.apps.values().filter_map(|record| record.committed.clone()).collect();
        for stored in committed {
            if let Ok(release) = self.release(&inner, &stored, Purpose::KeepRunning, None) {
                let marks = inner.marks.releases.entry(stored.app_id).or_default();
                *marks = marks.committed(&release);
            }
        }
        self.mend_host_floors(&mut inner);
    }

    /// The trusted root.
    #[must_use]
    pub fn root(&self) -> Verified<Root> {
        self.lock().root.clone()
    }

    /// The newest accepted assignment's mark.
    #[must_use]
    pub fn mark(&self) -> AssignmentMark {
        self.lock().marks.assignment
    }

    /// State files found damaged in both copies, for the status.
    #[must_use]
    pub fn lost(&self) -> Vec<String> {
        self.lock().lost.clone()
    }

    /// Trusts the next root; durable when it returns.
    ///
    /// # Errors
    /// [`StateError`]; then the old root stays trusted.
    pub fn accept_root(&self, root: Verified<Root>, bytes: &[u8]) -> Result<(), StateError> {
        let mut inner = self.lock();
        self.state.save_bytes("root", bytes)?;
        inner.root = root;
        inner.marks.clock_floor = clock::raised_by_root(inner.marks.clock_floor, &inner.root);
        self.settings.clock.raise(inner.marks.clock_floor);
        self.state.save("marks", &inner.marks)?;
        Ok(())
    }

    /// Accepts an assignment's order; durable when it returns. Its apps are judged by [`Self::resolve`].
    ///
    /// # Errors
    /// [`StateError`]; then the mark stays.
    pub fn accept_assignment(
        &self,
        assignment: &Verified<Assignment>,
        bytes: &[u8],
    ) -> Result<(), StateError> {
        let mut inner = self.lock();
        let marks = Marks { assignment: AssignmentMark::of(assignment), ..inner.marks.clone() };
        self.state.save("marks", &marks)?;
        inner.marks = marks;
        let (resolved, apps, mut hosts) =
            inner.accepted.take().map(|a| (a.resolved, a.apps, a.hosts)).unwrap_or_default();
        let text = String::from_utf8_lossy(bytes).into_owned();
        let assigned = assignment.apps.iter().map(|a| a.app_id).collect();
        // A host that is no longer named has no target any more; one whose newest is refused keeps what it had.
        let both = [HostPart::Os, HostPart::Agent];
        let named_hosts: BTreeSet<HostPart> =
            both.into_iter().filter(|part| hosts::named(assignment, *part).is_some()).collect();
        hosts.retain(|part, _| named_hosts.contains(part));
        let accepted = Accepted {
            assignment: text,
            resolved,
            assigned,
            apps,
            named_hosts,
            hosts,
            reboot_window: assignment.config.reboot_window,
            check_every_s: assignment.config.check_every_s,
        };
        let saved = self.state.save("target", &accepted);
        inner.accepted = Some(accepted);
        saved.map(drop)
    }

    /// The stored assignment, judged again under the trusted root.
    ///
    /// # Errors
    /// Its code; `None` where none is stored.
    pub fn assignment(&self, device: &DeviceIdentity) -> Result<Option<Verified<Assignment>>, Error> {
        let inner = self.lock();
        let Some(accepted) = &inner.accepted else { return Ok(None) };
        let envelope = Envelope::parse::<Assignment>(accepted.assignment.as_bytes())?;
        verify::assignment(&inner.root, device, &inner.marks.assignment, &envelope).map(Some)
    }

    /// The releases `assignment` names that are not on this disk, or not with the signatures that today's root asks for:
    /// the owner may have signed since.
    #[must_use]
    pub fn missing(&self, assignment: &Assignment) -> BTreeSet<Sha256Hex> {
        let inner = self.lock();
        let lacks = |app: AppId, hash: Sha256Hex| match self.state.load_bytes(&release_file(hash)) {
            Ok(Some(bytes)) => {
                let stored = StoredTarget {
                    app_id: app,
                    release: hash,
                    retry: 0,
                    env: copal_protocol::documents::EnvByService::default(),
                    sealed: copal_protocol::documents::SealedByService::default(),
                };
                let judged = self.release(&inner, &stored, self.purpose(&inner, app, hash), Some(&bytes));
                matches!(judged, Err(e) if is_signature(e.code))
            }
            _ => true,
        };
        let apps = assignment.apps.iter().filter(|app| lacks(app.app_id, app.sha256)).map(|app| app.sha256);
        apps.chain(self.missing_hosts(&inner, assignment)).collect()
    }

    /// How strictly a release is judged. What is committed or was begun here goes on under a root that asks for more than
    /// the one before; anything else is let in by today's root or not at all, however long ago it was accepted.
    fn purpose(&self, inner: &Inner, app: AppId, release: Sha256Hex) -> Purpose {
        let record = inner.apps.get(&app);
        if record.is_some_and(|r| r.began(release)) || inner.unsure.contains(&app) {
            Purpose::KeepRunning
        } else {
            Purpose::Install { now: self.settings.clock.now() }
        }
    }

    /// Judges every app and host of `assignment`; each is accepted or refused whole, and a refused one keeps what it had.
    /// `fetched` are the releases that were missing, or why they could not be had; only an accepted one is written.
    ///
    /// # Errors
    /// [`StateError`] where what was accepted cannot be kept; then nothing new is used.
    pub fn resolve(
        &self,
        assignment: &Verified<Assignment>,
        fetched: &BTreeMap<Sha256Hex, Result<Bytes, Error>>,
    ) -> Result<Refused, StateError> {
        let mut inner = self.lock();
        let Some(mut accepted) = inner.accepted.clone() else { return Ok(Refused::default()) };
        let mut marks = inner.marks.clone();
        let mut refused = Refused::default();
        for app in &assignment.apps {
            let had = accepted.apps.get(&app.app_id);
            let stored = StoredTarget {
                app_id: app.app_id,
                release: app.sha256,
                retry: app.retry,
                env: assignment.env.get(&app.app_id).cloned().unwrap_or_default(),
                sealed: assignment.sealed.get(&app.app_id).cloned().unwrap_or_default(),
            };
            let purpose = self.purpose(&inner, app.app_id, app.sha256);
            let settled = had == Some(&stored) && purpose == Purpose::KeepRunning;
            if settled && !fetched.contains_key(&app.sha256) {
                continue;
            }
            let judged = match fetched.get(&app.sha256) {
                Some(Err(error)) => Err(error.clone()),
                Some(Ok(bytes)) => self.open_target(&inner, &stored, purpose, Some(bytes)),
                None => self.open_target(&inner, &stored, purpose, None),
            };
            match judged {
                Ok(target) => {
                    if let Some(Ok(bytes)) = fetched.get(&app.sha256) {
                        self.state.save_bytes(&release_file(app.sha256), bytes)?;
                    }
                    let entry = marks.releases.entry(app.app_id).or_default();
                    *entry = entry.accepted(&target.release);
                    marks.clock_floor =
                        clock::raised_by_release(marks.clock_floor, &inner.root, &target.release);
                    accepted.apps.insert(app.app_id, stored);
                }
                Err(error) => {
                    refused.apps.insert(app.app_id, error);
                }
            }
        }
        for part in [HostPart::Os, HostPart::Agent] {
            let Some(target) = hosts::named(assignment, part) else { continue };
            if let Err(error) = self.resolve_host(&inner, &mut marks, part, target, fetched)? {
                refused.hosts.insert(part, error);
            } else {
                accepted.hosts.insert(part, target);
            }
        }
        let assigned = accepted.assigned.clone();
        accepted.apps.retain(|app, _| assigned.contains(app));
        if refused.is_empty() {
            accepted.resolved = (assignment.assign_epoch, assignment.seq);
        }
        self.state.save("marks", &marks)?;
        self.settings.clock.raise(marks.clock_floor);
        inner.marks = marks;
        self.state.save("target", &accepted)?;
        inner.accepted = Some(accepted);
        self.tidy(&inner);
        Ok(refused)
    }

    /// What should run now, by what is stored: judged again, so that a root accepted meanwhile counts. A revoked target
    /// gives way to the newest committed one that is not; where there is none, the app stops.
    #[must_use]
    pub fn resolved(&self) -> Resolved {
        let mut inner = self.lock();
        let mut resolved = Resolved::default();
        let wanted: Vec<StoredTarget> = match &inner.accepted {
            Some(accepted) => {
                resolved.order = accepted.resolved;
                resolved.reboot_window = accepted.reboot_window;
                resolved.check_every_s = accepted.check_every_s;
                // An app whose every target was refused keeps what it committed.
                let kept = accepted.assigned.iter().filter(|app| !accepted.apps.contains_key(app));
                let kept = kept.filter_map(|app| inner.apps.get(app)?.committed.as_ref());
                accepted.apps.values().chain(kept).cloned().collect()
            }
            // The target was lost: what was committed goes on until the cloud is heard.
            None => inner.apps.values().filter_map(|r| r.committed.clone()).collect(),
        };
        for stored in wanted {
            let purpose = self.purpose(&inner, stored.app_id, stored.release);
            match self.open_target(&inner, &stored, purpose, None) {
                Ok(target) => {
                    inner.known.insert(target.key(), stored.clone());
                    resolved.apps.insert(stored.app_id, target);
                }
                Err(error) => {
                    if let Some((target, fallback)) = self.fallback(&inner, stored.app_id) {
                        inner.known.insert(target.key(), fallback);
                        resolved.apps.insert(stored.app_id, target);
                    } else if !inner.unsure.contains(&stored.app_id)
                        && inner.apps.get(&stored.app_id).is_none_or(|r| r.targets().next().is_none())
                    {
                        resolved.never_begun.insert(stored.app_id);
                    }
                    resolved.refused.insert(stored.app_id, error);
                }
            }
        }
        self.resolved_hosts(&inner, &mut resolved);
        resolved
    }

    /// The newest committed target that still may run.
    fn fallback(&self, inner: &Inner, app: AppId) -> Option<(AppTarget, StoredTarget)> {
        let record = inner.apps.get(&app)?;
        record.committed.iter().chain(&record.earlier).find_map(|stored| {
            match self.open_target(inner, stored, Purpose::KeepRunning, None) {
                Ok(target) => Some((target, stored.clone())),
                Err(error) => {
                    tracing::warn!(%app, release = %stored.release, %error, "a committed release may not run any more");
                    None
                }
            }
        })
    }

    fn open_target(
        &self,
        inner: &Inner,
        stored: &StoredTarget,
        purpose: Purpose,
        fetched: Option<&[u8]>,
    ) -> Result<AppTarget, Error> {
        let release = self.release(inner, stored, purpose, fetched)?;
        self.session.identity(|identity| {
            let device = identity.device_id().ok_or_else(not_enrolled)?;
            let bench = Bench {
                platform: &self.settings.platform,
                oci: &self.settings.oci,
                device,
                seal_key: identity.seal(),
            };
            judge::effective(&bench, &inner.root, stored, release)
        })
    }

    fn release(
        &self,
        inner: &Inner,
        stored: &StoredTarget,
        purpose: Purpose,
        fetched: Option<&[u8]>,
    ) -> Result<Verified<copal_protocol::documents::Release>, Error> {
        let from_disk = match fetched {
            Some(_) => Vec::new(),
            None => match self.state.load_bytes(&release_file(stored.release)) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => {
                    let what = format!("release {} is not on this disk yet", stored.release);
                    return Err(Error::new(Code::Transport, what));
                }
                Err(e) => return Err(Error::new(Code::Transport, e.to_string())),
            },
        };
        let bytes = fetched.unwrap_or(&from_disk);
        let marks = inner.marks.releases.get(&stored.app_id).cloned().unwrap_or_default();
        self.session.identity(|identity| {
            let bench = Bench {
                platform: &self.settings.platform,
                oci: &self.settings.oci,
                device: identity.device_id().ok_or_else(not_enrolled)?,
                seal_key: identity.seal(),
            };
            judge::release(&bench, &inner.root, &marks, purpose, stored, bytes)
        })
    }

    /// Removes documents nothing names any more. What fails to go goes another time.
    fn tidy(&self, inner: &Inner) {
        let targets: Vec<&StoredTarget> = inner
            .accepted
            .iter()
            .flat_map(|a| a.apps.values())
            .chain(inner.apps.values().flat_map(AppRecord::targets))
            .collect();
        let mut releases: BTreeSet<String> = targets.iter().map(|t| release_file(t.release)).collect();
        releases.extend(hosts::kept(inner).map(release_file));
        for name in self.state.names("release-").unwrap_or_default() {
            if !releases.contains(&name)
                && let Err(e) = self.state.remove(&name)
            {
                tracing::debug!(name, error = %e, "a document nothing names stays for now");
            }
        }
    }
}

mod hosts;
mod ledger;

fn parse_root(bytes: &[u8], fleet: copal_protocol::ids::FleetId) -> Result<Verified<Root>, Error> {
    // The walk that led here was verified step by step; the file's checksum vouches for it since.
    verify::first_root(&Envelope::parse::<Root>(bytes)?, fleet)
}

fn release_file(hash: Sha256Hex) -> String {
    format!("release-{hash}")
}

/// Whether other signatures on the same payload could mend it.
const fn is_signature(code: Code) -> bool {
    matches!(
        code,
        Code::SigMissing | Code::SigInvalid | Code::SigUnknownKey | Code::SigWrongRole | Code::SigThreshold
    )
}

fn not_enrolled() -> Error {
    Error::new(Code::DeviceMismatch, "this device is not enrolled yet")
}

/// A file lost in both copies: what can be had again from the cloud is begun anew, and said.
fn or_lost<T>(
    loaded: Result<Option<T>, StateError>,
    lost: &mut Vec<String>,
) -> Result<Option<T>, StateError> {
    match loaded {
        Err(e @ (StateError::Lost { .. } | StateError::Content { .. })) => {
            tracing::error!(error = %e, "a state file is lost; it is begun anew from the cloud");
            lost.push(e.to_string());
            Ok(None)
        }
        other => other,
    }
}
