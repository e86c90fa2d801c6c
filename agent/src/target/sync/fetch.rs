//! The documents on their way: roots, the assignment, releases, freshness; each verified before it counts.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use copal_protocol::{
    device_api::FreshnessRequest,
    documents::{Assignment, Document as _, Freshness, Reason, Release, Root},
    envelope::Envelope,
    ids::Sha256Hex,
    verify::{self, Code, Error, Verified},
};

use super::{Stop, Store, Sync};
use crate::target::model::HostPart;
use crate::{
    apply::status::reason,
    cloud::{Call, CloudError},
    identity::{Identity, SessionError},
};

/// Roots followed in one cycle.
const ROOTS_A_CYCLE: usize = 64;

impl Sync {
    /// Step 3 of `trust.md`: N+1, N+2, … each kept before the next is asked for.
    pub(super) async fn walk_roots(&mut self) -> Result<(), Stop> {
        for _ in 0..ROOTS_A_CYCLE {
            let root = self.store.root();
            let path = format!("/device/v1/roots/{}", root.version + 1);
            let answer = match self.session.call(Call::get(&path, Root::MAX_BYTES)).await {
                Ok(answer) => answer,
                Err(SessionError::Cloud(e)) if e.is_status(404) => break,
                Err(e) => return Err(e.into()),
            };
            let next = verify::next_root(&root, &Envelope::parse::<Root>(&answer.body)?)?;
            tracing::info!(version = next.version, "a newer root is trusted");
            self.store.accept_root(next, &answer.body)?;
            self.after_root();
        }
        self.roots_walked = Some(Instant::now());
        Ok(())
    }

    /// Verifies a fetched assignment and does what it says.
    pub(super) async fn take(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let device = self
            .session
            .identity(Identity::device)
            .ok_or_else(|| Error::new(Code::DeviceMismatch, "this device is not enrolled yet"))?;
        let envelope = Envelope::parse::<Assignment>(bytes)?;
        self.suspect = Some(envelope.payload_sha256());
        let judge = |store: &Store| verify::assignment(&store.root(), &device, &store.mark(), &envelope);
        let assignment = match judge(&self.store) {
            // A newer root may explain the signature as well as the number: walk first, then judge once more.
            Err(e) if matches!(e.code, Code::RootBehind | Code::SigUnknownKey | Code::SigWrongRole) => {
                self.walk_roots().await?;
                judge(&self.store)?
            }
            judged => judged?,
        };
        verify::root_in_time(&self.store.root(), self.clock.now())?;
        if self.store.mark().sha256 != Some(assignment.sha256()) {
            tracing::info!(
                epoch = assignment.assign_epoch,
                seq = assignment.seq,
                "a new assignment is accepted"
            );
        }
        self.store.accept_assignment(&assignment, bytes)?;
        self.tell(|c| {
            c.refused = None;
            c.mark = self.store.mark();
        });
        self.resolve(&assignment).await
    }

    /// Fetches what is missing, judges each app, asks for freshness, publishes.
    pub(super) async fn resolve(&mut self, assignment: &Verified<Assignment>) -> Result<(), Stop> {
        self.interval = assignment
            .config
            .poll_interval_s
            .map_or(self.pace.poll, |s| std::time::Duration::from_secs(u64::from(s.clamp(10, 86_400))));
        if let Some(time) = assignment.not_before.filter(|time| *time > self.clock.now()) {
            self.not_before = Some(time);
            self.settled = Some(assignment.sha256());
            self.tell(|c| {
                c.refused = Some(reason(
                    "waiting_not_before",
                    format!("the new target waits until {time} (Unix seconds) as it was asked to"),
                ));
            });
            return Ok(());
        }
        self.not_before = None;
        let mut fetched = BTreeMap::new();
        let mut unreachable = None;
        for hash in self.store.missing(assignment) {
            match self.fetch_release(hash).await {
                Ok(bytes) => {
                    fetched.insert(hash, Ok(bytes));
                }
                Err(Stop::Refused(e)) => {
                    fetched.insert(hash, Err(e));
                }
                Err(Stop::Session(e)) => {
                    let code = match &e {
                        SessionError::Cloud(CloudError::TooLarge(_)) => Code::TooLarge,
                        SessionError::Cloud(CloudError::Slow(_)) => Code::Slow,
                        _ => Code::Transport,
                    };
                    fetched.insert(hash, Err(Error::new(code, format!("release {hash}: {e}"))));
                    unreachable = Some(e);
                }
                Err(stop @ Stop::State(_)) => return Err(stop),
            }
        }
        let refused = self.store.resolve(assignment, &fetched)?;
        let whole = refused.is_empty();
        let hosts: BTreeMap<_, Reason> = refused
            .hosts
            .iter()
            .map(|(part, e)| {
                let named = match part {
                    HostPart::Os => assignment.host,
                    HostPart::Agent => assignment.agent,
                };
                if let Some(times) = self.said.failed(&format!("{part:?} {}", e.code), &e.detail) {
                    tracing::warn!(part = part.as_str(), code = %e.code, detail = e.detail, times, "the new release is refused; what runs goes on");
                }
                let message = format!("the release of {}: {}", part.as_str(), e.detail);
                (*part, Reason { release: named.map(|n| n.sha256), ..reason(e.code.as_str(), message) })
            })
            .collect();
        let first = refused.apps.values().chain(refused.hosts.values()).next().cloned();
        let releases: BTreeMap<_, _> = assignment.apps.iter().map(|a| (a.app_id, a.sha256)).collect();
        let reasons: BTreeMap<_, Reason> = refused
            .apps
            .iter()
            .map(|(app, e)| {
                if let Some(times) = self.said.failed(&format!("{app} {}", e.code), &e.detail) {
                    tracing::warn!(%app, code = %e.code, detail = e.detail, times, "the app's new release is refused; what runs goes on");
                }
                (*app, Reason { release: releases.get(app).copied(), ..reason(e.code.as_str(), &e.detail) })
            })
            .collect();
        self.tell(|c| {
            c.refused = None;
            c.refused_apps = reasons;
            c.refused_hosts = hosts;
        });
        if whole {
            self.settled = Some(assignment.sha256());
        }
        if self.fresh.is_none_or(|(hash, _)| hash != assignment.sha256()) {
            self.fresh = None;
            if let Err(e) = self.ask_freshness().await {
                self.publish();
                return Err(e);
            }
        }
        self.publish();
        match (first, unreachable) {
            (None, _) => Ok(()),
            // Not settled: asked for again after the back-off, with the refusals kept in the condition.
            (Some(_), Some(e)) => Err(e.into()),
            (Some(first), None) => Err(Stop::Refused(first)),
        }
    }

    async fn fetch_release(&self, hash: Sha256Hex) -> Result<Bytes, Stop> {
        let path = format!("/device/v1/releases/{hash}");
        let answer = self.session.call(Call::get(&path, Release::MAX_BYTES)).await?;
        let envelope = Envelope::parse::<Release>(&answer.body)?;
        if envelope.payload_sha256() != hash {
            return Err(Error::new(
                Code::ReleaseHash,
                format!("the cloud sent release {} where {hash} is assigned", envelope.payload_sha256()),
            )
            .into());
        }
        Ok(answer.body)
    }

    pub(super) async fn ask_freshness(&mut self) -> Result<(), Stop> {
        let Some(device) = self.session.identity(Identity::device) else { return Ok(()) };
        let mark = self.store.mark();
        let Some(hash) = mark.sha256 else { return Ok(()) };
        let mut nonce = [0; 32];
        if let Err(e) = getrandom::fill(&mut nonce) {
            return Err(Error::new(
                Code::Nonce,
                format!("the system gives no random bytes for a nonce: {e}"),
            )
            .into());
        }
        let nonce = Sha256Hex::from_bytes(nonce);
        let body = serde_json::to_vec(&FreshnessRequest { nonce })
            .map_err(|e| Error::new(Code::Nonce, e.to_string()))?;
        let answer =
            self.session.call(Call::post("/device/v1/freshness", body, Freshness::MAX_BYTES)).await?;
        let judged = Envelope::parse::<Freshness>(&answer.body)
            .and_then(|envelope| verify::freshness(&self.store.root(), &device, nonce, &mark, &envelope));
        match judged {
            Ok(_) => {
                self.fresh = Some((hash, Instant::now()));
                self.publish();
                Ok(())
            }
            Err(e) => {
                self.fresh = None;
                // The next poll shows what the cloud has now.
                self.settled = None;
                self.publish();
                Err(e.into())
            }
        }
    }
}
