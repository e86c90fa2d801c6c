//! The operating system's and the agent's releases: judged as apps' are, with marks and floors of their own.

use copal_protocol::{
    documents::Release,
    envelope::Envelope,
    verify::{ExpectedRelease, ReleaseMarks},
};

use super::{
    Arc, Assignment, BTreeMap, Bytes, Code, Error, HostAim, HostPart, HostTarget, Inner, Marks, Purpose,
    Resolved, Sha256Hex, StateError, Store, Verified, clock, is_signature, release_file, verify,
};
use crate::target::model::HostRelease;

/// Where a part's record is.
pub(super) const fn file(part: HostPart) -> &'static str {
    match part {
        HostPart::Os => "host-os",
        HostPart::Agent => "host-agent",
    }
}

/// What an assignment names for a part.
pub(super) const fn named(assignment: &Assignment, part: HostPart) -> Option<HostTarget> {
    match part {
        HostPart::Os => assignment.host,
        HostPart::Agent => assignment.agent,
    }
}

/// The host releases whose documents are still needed.
pub(super) fn kept(inner: &Inner) -> impl Iterator<Item = Sha256Hex> {
    let accepted = inner.accepted.iter().flat_map(|a| a.hosts.values()).map(|host| host.sha256);
    accepted.chain(
        inner
            .hosts
            .values()
            .flat_map(|record| record.committed.into_iter().chain(record.previous).chain(record.begun)),
    )
}

impl Store {
    fn host_marks_key(&self, part: HostPart) -> String {
        match part {
            HostPart::Os => format!("host/{}", self.settings.platform.device_type),
            HostPart::Agent => format!("agent/{}", self.settings.platform.arch),
        }
    }

    /// What runs or was begun here goes on under a stricter root; anything else is let in by today's.
    fn host_purpose(&self, inner: &Inner, part: HostPart, release: Sha256Hex) -> Purpose {
        let known = inner
            .hosts
            .get(&part)
            .is_some_and(|r| [r.committed, r.previous, r.begun].contains(&Some(release)));
        if known { Purpose::KeepRunning } else { Purpose::Install { now: self.settings.clock.now() } }
    }

    /// The floor of `os.json` counts as if it had been reached here.
    fn host_marks(&self, marks: &Marks, part: HostPart) -> ReleaseMarks {
        let mut found = marks.hosts.get(&self.host_marks_key(part)).cloned().unwrap_or_default();
        if part == HostPart::Os {
            found.floor = found.floor.max(self.settings.os_floor);
        }
        found
    }

    fn host_release(
        &self,
        inner: &Inner,
        part: HostPart,
        sha256: Sha256Hex,
        fetched: Option<&[u8]>,
    ) -> Result<Verified<Release>, Error> {
        let purpose = self.host_purpose(inner, part, sha256);
        match fetched {
            Some(bytes) => self.judge_host(inner, part, sha256, purpose, bytes),
            None => match self.state.load_bytes(&release_file(sha256)) {
                Ok(Some(bytes)) => self.judge_host(inner, part, sha256, purpose, &bytes),
                Ok(None) => {
                    Err(Error::new(Code::Transport, format!("release {sha256} is not on this disk yet")))
                }
                Err(e) => Err(Error::new(Code::Transport, e.to_string())),
            },
        }
    }

    fn judge_host(
        &self,
        inner: &Inner,
        part: HostPart,
        sha256: Sha256Hex,
        purpose: Purpose,
        envelope: &[u8],
    ) -> Result<Verified<Release>, Error> {
        let envelope = Envelope::parse::<Release>(envelope)?;
        let marks = self.host_marks(&inner.marks, part);
        let expected = ExpectedRelease::host(sha256);
        let found =
            verify::release(&inner.root, &expected, &marks, &self.settings.platform, purpose, &envelope)?;
        let of_agent = found.payloads.keys().any(|name| name.as_str() == "agent");
        if of_agent == (part == HostPart::Agent) {
            return Ok(found);
        }
        let (is, wanted) = if of_agent {
            ("the agent", "the operating system")
        } else {
            ("the operating system", "the agent")
        };
        Err(Error::new(Code::ReleaseApp, format!("a release of {is}, expected one of {wanted}")))
    }

    /// Judges an envelope that a person brought: as a new install, by everything known here.
    ///
    /// # Errors
    /// The refusal's code.
    pub fn judge_os_file(&self, envelope: &[u8]) -> Result<Verified<Release>, Error> {
        let sha256 = Envelope::parse::<Release>(envelope)?.payload_sha256();
        let purpose = Purpose::Install { now: self.settings.clock.now() };
        self.judge_host(&self.lock(), HostPart::Os, sha256, purpose, envelope)
    }

    /// A host release that is on this disk, judged again by today's root.
    ///
    /// # Errors
    /// Why it may not be used; `E_TRANSPORT` where it is not here.
    pub fn host_document(&self, part: HostPart, sha256: Sha256Hex) -> Result<Verified<Release>, Error> {
        self.host_release(&self.lock(), part, sha256, None)
    }

    /// The lowest counter of an operating system's release that may run here, by what is remembered and what Root says.
    #[must_use]
    pub fn os_floor(&self) -> u64 {
        let inner = self.lock();
        let of_root = inner.root.floors.get(&self.host_marks_key(HostPart::Os)).copied().unwrap_or(0);
        self.host_marks(&inner.marks, HostPart::Os).floor.max(of_root)
    }

    /// Whether Root revokes a release.
    #[must_use]
    pub fn is_revoked(&self, release: Sha256Hex) -> bool {
        self.lock().root.revoked_releases.contains(&release)
    }

    pub(super) fn missing_hosts(&self, inner: &Inner, assignment: &Assignment) -> Vec<Sha256Hex> {
        let lacks = |part: HostPart, sha256| match self.host_release(inner, part, sha256, None) {
            Err(e) => e.code == Code::Transport || is_signature(e.code),
            Ok(_) => false,
        };
        [HostPart::Os, HostPart::Agent]
            .into_iter()
            .filter_map(|part| Some((part, named(assignment, part)?.sha256)))
            .filter(|(part, sha256)| lacks(*part, *sha256))
            .map(|(_, sha256)| sha256)
            .collect()
    }

    /// Judges one host target; an accepted one is on disk and marked when this returns.
    pub(super) fn resolve_host(
        &self,
        inner: &Inner,
        marks: &mut Marks,
        part: HostPart,
        target: HostTarget,
        fetched: &BTreeMap<Sha256Hex, Result<Bytes, Error>>,
    ) -> Result<Result<(), Error>, StateError> {
        let judged = match fetched.get(&target.sha256) {
            Some(Err(error)) => Err(error.clone()),
            Some(Ok(bytes)) => self.host_release(inner, part, target.sha256, Some(bytes)),
            None => self.host_release(inner, part, target.sha256, None),
        };
        let release = match judged {
            Ok(release) => release,
            Err(error) => return Ok(Err(error)),
        };
        if let Some(Ok(bytes)) = fetched.get(&target.sha256) {
            self.state.save_bytes(&release_file(target.sha256), bytes)?;
        }
        let entry = marks.hosts.entry(self.host_marks_key(part)).or_default();
        *entry = entry.accepted(&release);
        marks.clock_floor = clock::raised_by_release(marks.clock_floor, &inner.root, &release);
        Ok(Ok(()))
    }

    pub(super) fn resolved_hosts(&self, inner: &Inner, resolved: &mut Resolved) {
        // Without a stored assignment nothing is known, which is not the same as nothing wanted.
        let Some(accepted) = &inner.accepted else { return };
        for part in [HostPart::Os, HostPart::Agent] {
            let aim = match accepted.hosts.get(&part) {
                Some(target) => match self.host_release(inner, part, target.sha256, None) {
                    Ok(release) => {
                        HostAim::Release(HostRelease { release: Arc::new(release), retry: target.retry })
                    }
                    Err(error) => {
                        let aim = match error.code {
                            Code::Transport => HostAim::Unknown,
                            code => HostAim::Refused(code),
                        };
                        resolved.refused_hosts.insert(part, error);
                        aim
                    }
                },
                // One is named, and was refused: what runs goes on.
                None if accepted.named_hosts.contains(&part) => HostAim::Unknown,
                None => HostAim::None,
            };
            resolved.hosts.insert(part, aim);
        }
    }

    fn change_host(
        &self,
        inner: &mut Inner,
        part: HostPart,
        change: impl FnOnce(&mut super::HostRecord),
    ) -> Result<(), StateError> {
        let mut record = inner.hosts.get(&part).cloned().unwrap_or_default();
        change(&mut record);
        self.state.save(file(part), &record)?;
        inner.hosts.insert(part, record);
        Ok(())
    }

    /// Keeps the document of a release that a person brought.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn keep_os_file(&self, release: &Verified<Release>, envelope: &[u8]) -> Result<(), StateError> {
        let mut inner = self.lock();
        self.state.save_bytes(&release_file(release.sha256()), envelope)?;
        self.change_host(&mut inner, HostPart::Os, |record| record.begun = Some(release.sha256()))
    }

    /// Written before a host release gets its first chance to run. Judged once more: the root may have changed since it
    /// was given out. Time does not count here; a download may be slow.
    ///
    /// # Errors
    /// The refusal, or the disk's failure as `E_TRANSPORT`.
    pub fn begin_host(&self, part: HostPart, sha256: Sha256Hex) -> Result<(), Error> {
        let mut inner = self.lock();
        let disk = |e: StateError| Error::new(Code::Transport, e.to_string());
        let Some(bytes) = self.state.load_bytes(&release_file(sha256)).map_err(disk)? else {
            return Err(Error::new(Code::Transport, format!("release {sha256} is not on this disk")));
        };
        let purpose = match self.host_purpose(&inner, part, sha256) {
            Purpose::KeepRunning => Purpose::KeepRunning,
            Purpose::Install { .. } => Purpose::Install { now: 0 },
        };
        self.judge_host(&inner, part, sha256, purpose, &bytes)?;
        self.change_host(&mut inner, part, |record| record.begun = Some(sha256)).map_err(disk)
    }

    /// A host release proved itself: floors rise. A document that is lost raises nothing.
    ///
    /// # Errors
    /// [`StateError`]; call again.
    pub fn commit_host(&self, part: HostPart, sha256: Sha256Hex) -> Result<(), StateError> {
        let mut inner = self.lock();
        self.change_host(&mut inner, part, |record| {
            if record.committed != Some(sha256) {
                record.previous = record.committed.replace(sha256);
            }
            record.begun = None;
        })?;
        self.mend_host_floors(&mut inner);
        self.state.save("marks", &inner.marks)?;
        self.tidy(&inner);
        Ok(())
    }

    /// A host release was begun and did not prove itself: a later start of it is judged as new.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn end_host(&self, part: HostPart, sha256: Sha256Hex) -> Result<(), StateError> {
        let mut inner = self.lock();
        if inner.hosts.get(&part).is_none_or(|record| record.begun != Some(sha256)) {
            return Ok(());
        }
        self.change_host(&mut inner, part, |record| record.begun = None)?;
        self.tidy(&inner);
        Ok(())
    }

    /// The host release committed last.
    #[must_use]
    pub fn committed_host(&self, part: HostPart) -> Option<Sha256Hex> {
        self.lock().hosts.get(&part)?.committed
    }

    /// A power cut between a commit and its floor: the committed release says what the floor is.
    pub(super) fn mend_host_floors(&self, inner: &mut Inner) {
        for part in [HostPart::Os, HostPart::Agent] {
            let Some(sha256) = inner.hosts.get(&part).and_then(|record| record.committed) else { continue };
            match self.host_release(inner, part, sha256, None) {
                Ok(release) => {
                    let entry = inner.marks.hosts.entry(self.host_marks_key(part)).or_default();
                    *entry = entry.committed(&release);
                }
                Err(error) => {
                    tracing::debug!(part = part.as_str(), %error, "the committed host release raises no floor");
                }
            }
        }
    }
}
