//! Trials: begun, looked at, and ended by committing the release or by going back to the one before it.

use std::{collections::BTreeMap, time::Duration};

use copal_protocol::ids::{AppId, Name};
use tokio::time::Instant;

use super::{
    Supervisor,
    lanes::{LaneKey, LaneState},
};
use crate::{
    apply::{
        backoff,
        ports::ApplyError,
        status::reason,
        trial::{Choice, Failure, Look, Trial, Verdict},
    },
    diagnostics::redact::Redactor,
    engine,
    plan::{Lane, Plan},
    supervisor::RESYNC,
    target::model::Secret,
};

/// An app with nothing to fall back to gets at least this long between two trials.
const FIRST_RETRY: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Judges every trial under way. Whether anything that is wanted changed by that, and when to look again.
    pub(super) async fn judge(&mut self, plan: &Plan) -> (bool, Instant) {
        let mut next = Instant::now() + RESYNC;
        let now_ms = self.now_ms();
        let mut verdicts = Vec::new();
        let empty = crate::observe::AppState::default();
        for (id, app) in &mut self.apps {
            let (Some(wanted), true) = (&app.wanted, app.on_trial()) else { continue };
            let Some(key) = app.key else { continue };
            let seen = self.state.apps.get(id).unwrap_or(&empty);
            if app.first_failure.as_ref().is_some_and(|(.., until)| *until > Instant::now()) {
                next = next.min(app.first_failure.as_ref().map_or(next, |(.., until)| *until));
                continue;
            }
            if app.trial.is_none() {
                // Journalled before: the agent was restarted within the trial. Nothing to do: it begins with no effect.
                let idle = plan.apps.get(id).is_none_or(|p| p.lanes.is_empty());
                if self.ledger.trial(*id) != Some(key) {
                    if !idle {
                        continue;
                    }
                    let Some(target) = &app.target else { continue };
                    if let Err(error) = self.ledger.begin_trial(target) {
                        tracing::error!(%error, "the trial cannot be written down");
                        continue;
                    }
                }
                app.trial = Some(Trial::begin(key, Some(seen)));
            }
            let Some(trial) = &mut app.trial else { continue };
            let failed = failures(&self.lanes, *id);
            let object_failed = object_failure(&self.lanes, *id);
            let look = Look {
                now_ms,
                wanted,
                app: seen,
                failed: &failed,
                object_failed: object_failed.as_ref(),
                healthy_after_ms: self.healthy_after_ms,
                held: &app.held,
            };
            match trial.look(&look) {
                Verdict::Going { ends_ms, look_ms, waits_for } => {
                    if let Some(at) = look_ms {
                        next = next.min(self.started + Duration::from_millis(at));
                    }
                    let left = ends_ms.map(|ends| ends.saturating_sub(now_ms).div_ceil(1000));
                    let ends = left.map(|left| unix_now() + left);
                    // Whole seconds of two clocks: a difference of one is none.
                    if ends.is_none()
                        || app.trial_ends.is_none_or(|old| ends.is_some_and(|new| new.abs_diff(old) > 1))
                    {
                        app.trial_ends = ends;
                    }
                    app.waits_for = waits_for;
                }
                verdict => verdicts.push((*id, verdict)),
            }
        }
        let mut changed = false;
        for (id, verdict) in verdicts {
            changed |= match verdict {
                Verdict::Passed => self.commit(id),
                Verdict::Failed(failure) => self.undo(id, failure).await,
                Verdict::Going { .. } => false,
            };
        }
        (changed, next)
    }

    fn commit(&mut self, id: AppId) -> bool {
        let Some(app) = self.apps.get_mut(&id) else { return false };
        let Some(target) = app.target.clone() else { return false };
        if let Err(error) = self.ledger.commit(&target) {
            tracing::error!(app = %id, %error, "the release proved itself but cannot be committed; trying again");
            return false;
        }
        tracing::info!(app = %id, release = %target.release.sha256(), "committed");
        app.committed = Some(target);
        app.parked = None;
        app.first_failure = None;
        true
    }

    /// Ends a trial badly: back to what is committed, or, with nothing to go back to, another try later.
    async fn undo(&mut self, id: AppId, failure: Failure) -> bool {
        let log_tail = match &failure.container {
            Some(container) => self.engine.log_tail(container).await,
            None => Vec::new(),
        };
        let Some(app) = self.apps.get_mut(&id) else { return false };
        let (Some(key), Some(target)) = (app.key, app.target.clone()) else { return false };
        let said = self.said.entry((id, None)).or_default();
        if let Some(times) = said.failed(failure.code, &failure.message) {
            tracing::warn!(app = %id, code = failure.code, times, "the trial failed: {}", failure.message);
        }
        let mut why = reason(failure.code, failure.message.clone());
        why.release = Some(target.release.sha256());
        why.service.clone_from(&failure.service);
        why.exit_code = failure.exit_code;
        why.log_tail = without_secrets(&log_tail, &target.secrets);
        app.trial = None;
        app.trial_ends = None;
        if app.choice == Some(Choice::First) {
            let times = app.first_failure.as_ref().map_or(1, |(_, times, _)| times + 1);
            let wait = backoff::wait(times, backoff::random()).max(FIRST_RETRY);
            let until = Instant::now() + wait;
            app.first_failure = Some((why, times, until));
            if let Some(service) = failure.service {
                self.lanes.entry((id, Lane::Service(service))).or_default().retry_at = Some(until);
            }
            return false;
        }
        why.code = "rolled_back".to_owned();
        why.message = format!("{} ({})", failure.message, failure.code);
        if let Err(error) = self.ledger.park(id, key, &why) {
            // Rolled back all the same; after a restart of the agent it would be tried once more.
            tracing::error!(app = %id, %error, "what failed cannot be written down");
        }
        app.parked = Some((key, why));
        true
    }
}

/// Services whose lane fails in a way that speaks against the target. None does while another lane of the app is at
/// work: what fails may wait for a port or an address that the other one is about to let go.
fn failures(lanes: &BTreeMap<LaneKey, LaneState>, id: AppId) -> BTreeMap<Name, (u32, ApplyError)> {
    let at_work = |lane: &LaneState| lane.running.as_ref().is_some_and(|running| !running.downloads());
    if lanes.iter().any(|((app, _), lane)| *app == id && at_work(lane)) {
        return BTreeMap::new();
    }
    lanes
        .iter()
        .filter(|((app, _), _)| *app == id)
        .filter_map(|((_, lane), state)| {
            let error = state.error.clone().filter(|e| crate::apply::trial::condemns(&e.code))?;
            Some((lane.service()?.clone(), (state.failures, error)))
        })
        .collect()
}

/// The same for networks and volumes. A network that is only being removed is none of the trial's business.
fn object_failure(lanes: &BTreeMap<LaneKey, LaneState>, id: AppId) -> Option<(u32, ApplyError)> {
    lanes
        .iter()
        .filter(|((app, lane), _)| *app == id && lane.service().is_none())
        .filter_map(|(_, state)| {
            let error = state.error.clone().filter(|e| crate::apply::trial::condemns(&e.code))?;
            Some((state.failures, error))
        })
        .max_by_key(|(failures, _)| *failures)
}

fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Last lines as they may leave the device: without what the cloud sealed to it.
fn without_secrets(lines: &[String], secrets: &BTreeMap<Name, BTreeMap<String, Secret>>) -> Vec<String> {
    let known =
        secrets.values().flat_map(|of| of.values()).map(|s| String::from_utf8_lossy(&s.0).into_owned());
    // Bounded again: what stands in a secret's place may be longer than it.
    engine::log_lines(Redactor::new(known).text(&lines.join("\n")).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_leave_the_device_without_the_secrets_of_its_services() {
        let secret = Secret(b"s3cr3t\nof two lines".to_vec());
        let secrets =
            BTreeMap::from([("web".parse().unwrap(), BTreeMap::from([("KEY".to_owned(), secret)]))]);
        let lines = ["it is s3cr3t".to_owned(), "and of two lines".to_owned(), "s3cr3t".repeat(80)];
        let told = without_secrets(&lines, &secrets);
        assert_eq!(told[..2], ["it is (redacted)", "and (redacted)"]);
        assert!(told[2].len() <= 500 && !told[2].contains("s3cr3t"));
    }
}
