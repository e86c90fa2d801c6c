//! Assignments: what each device should run, signed by the assign key.
//!
//! In: a device's or fleet's id, after anything an assignment is made from has been committed. Out: signed bytes in the
//! database and their hash in memory, only where the content changed. Never here: who gets which release when (`rollouts/`).
//!
//! Everything an assignment is made from is read in the transaction that writes it. The database has one writer, so two
//! refreshes at once cannot interleave: (assign_epoch, seq) of a device only rises, and the last one has seen everything.

pub(crate) mod content;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc};

use copal_protocol::{
    documents::{
        Assignment, DeviceConfig, Document as _, EnvByService, HostTarget, Reason, Release, Root,
        SealedByService,
    },
    envelope::Envelope,
    ids::{AppId, DeviceId, FleetId, Name},
    seal,
    verify::{self, Verified},
};

use crate::{
    app::{self, App},
    bus::Event,
    devices::{memory::Mark, rows},
    error::{Problem, Result},
    releases::{self, Line, ReleaseStatus, line::by_line},
    store::Tx,
    variables::resolve::{self, Variable},
};
use content::{Candidate, Place, Recipient, Targets};

/// Devices in one transaction: long enough to be quick, short enough that other writes get between.
const BATCH: i64 = 500;
/// With more changes than this listeners are told once, of the fleet.
const TOLD_EACH: usize = 50;

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT d.device_id, d.state, d.public_key, d.seal_key, d.arch, d.device_type, d.clone_suspected,
             d.pinned_release, d.retry, d.committed_release, d.held_back,
             d.pinned_os, d.retry_os, d.running_os, d.held_back_os,
             d.pinned_agent, d.retry_agent, d.running_agent, d.held_back_agent,
             a.assign_epoch, a.seq, a.content_sha256, a.release_id, a.os_id, a.agent_id
             FROM devices d LEFT JOIN assignments a ON a.device_id = d.device_id ",
            $rest
        )
    };
}

/// Brings one device's assignment up to date. Answers its seq when it has one.
///
/// # Errors
/// When the database fails.
pub async fn refresh_device(app: &App, device: DeviceId) -> Result<Option<u64>> {
    let Some(entry) = app.devices.get(device) else { return Ok(None) };
    let mut work = Work::new(app, entry.fleet_id);
    let mut tx = app.db.write().await?;
    let Some(setting) = work.setting(&mut tx).await? else { return Ok(None) };
    let row: Option<Row> = sqlx::query_as(select!("WHERE d.device_id = $1"))
        .bind(device.to_string())
        .fetch_optional(&mut *tx)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let seq = work.refresh(&mut tx, &setting, &row).await?;
    tx.commit().await?;
    work.tell();
    Ok(seq)
}

/// Brings the assignments of a whole fleet up to date, in batches. Answers how many changed.
///
/// # Errors
/// When the database fails.
pub async fn refresh_fleet(app: &App, fleet: FleetId) -> Result<u64> {
    let mut work = Work::new(app, fleet);
    let mut changed = 0;
    let mut after = String::new();
    loop {
        let mut tx = app.db.write().await?;
        let Some(setting) = work.setting(&mut tx).await? else { return Ok(changed) };
        let rows: Vec<Row> = sqlx::query_as(select!(
            "WHERE d.fleet_id = $1 AND d.device_id > $2 ORDER BY d.device_id LIMIT $3"
        ))
        .bind(fleet.to_string())
        .bind(&after)
        .bind(BATCH)
        .fetch_all(&mut *tx)
        .await?;
        let Some(last) = rows.last() else { return Ok(changed) };
        after.clone_from(&last.device_id);
        for row in &rows {
            work.refresh(&mut tx, &setting, row).await?;
        }
        tx.commit().await?;
        changed += work.marks.len() as u64;
        work.tell();
        if rows.len() < usize::try_from(BATCH).unwrap_or(usize::MAX) {
            return Ok(changed);
        }
        tokio::task::yield_now().await;
    }
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    device_id: String,
    state: String,
    public_key: String,
    seal_key: String,
    arch: String,
    device_type: String,
    clone_suspected: bool,
    pinned_release: Option<String>,
    retry: i64,
    committed_release: Option<String>,
    held_back: Option<String>,
    pinned_os: Option<String>,
    retry_os: i64,
    running_os: Option<String>,
    held_back_os: Option<String>,
    pinned_agent: Option<String>,
    retry_agent: i64,
    running_agent: Option<String>,
    held_back_agent: Option<String>,
    assign_epoch: Option<i64>,
    seq: Option<i64>,
    content_sha256: Option<String>,
    release_id: Option<String>,
    os_id: Option<String>,
    agent_id: Option<String>,
}

/// What a device's row says of one line.
#[derive(Debug, Clone, Copy)]
struct OfLine<'a> {
    pinned: Option<&'a String>,
    retry: u64,
    /// What it falls back to: its `rollback_floor` binds.
    committed: Option<&'a String>,
    held_back: Option<&'a String>,
    /// What its assignment says now.
    given: Option<&'a String>,
}

impl Row {
    fn of(&self, line: Line) -> OfLine<'_> {
        match line {
            Line::App => OfLine {
                pinned: self.pinned_release.as_ref(),
                retry: self.retry.unsigned_abs(),
                committed: self.committed_release.as_ref(),
                held_back: self.held_back.as_ref(),
                given: self.release_id.as_ref(),
            },
            Line::Os => OfLine {
                pinned: self.pinned_os.as_ref(),
                retry: self.retry_os.unsigned_abs(),
                committed: self.running_os.as_ref(),
                held_back: self.held_back_os.as_ref(),
                given: self.os_id.as_ref(),
            },
            Line::Agent => OfLine {
                pinned: self.pinned_agent.as_ref(),
                retry: self.retry_agent.unsigned_abs(),
                committed: self.running_agent.as_ref(),
                held_back: self.held_back_agent.as_ref(),
                given: self.agent_id.as_ref(),
            },
        }
    }
}

fn target(row: &Row, line: Line, chosen: Option<&Candidate>) -> Option<HostTarget> {
    chosen.map(|c| HostTarget { sha256: c.sha256, retry: row.of(line).retry })
}

/// What is the same for all devices of a fleet, as it stands in one transaction.
struct Setting {
    app_id: AppId,
    /// By line, where the fleet has one.
    targets: HashMap<Line, String>,
    config: DeviceConfig,
    root: Verified<Root>,
    variables: Vec<Variable>,
}

#[derive(Debug, sqlx::FromRow)]
struct FleetTargets {
    app_id: String,
    slug: String,
    target_release: Option<String>,
    target_os: Option<String>,
    target_agent: Option<String>,
    reboot_window: Option<String>,
    check_every_s: Option<i64>,
}

/// A refresh under way.
struct Work<'a> {
    app: &'a App,
    fleet: FleetId,
    slug: String,
    /// Documents never change, so they are parsed once a refresh; statuses are read in each transaction.
    documents: HashMap<String, Arc<Release>>,
    candidates: HashMap<String, Option<Arc<Candidate>>>,
    /// Changed in the transaction under way.
    marks: Vec<(DeviceId, Mark)>,
    /// Held back otherwise than before.
    held: Vec<DeviceId>,
}

impl<'a> Work<'a> {
    fn new(app: &'a App, fleet: FleetId) -> Self {
        Self {
            app,
            fleet,
            slug: String::new(),
            documents: HashMap::new(),
            candidates: HashMap::new(),
            marks: Vec::new(),
            held: Vec::new(),
        }
    }

    /// Reads what all devices share; `None` before the owner's first Root.
    async fn setting(&mut self, tx: &mut Tx) -> Result<Option<Setting>> {
        self.candidates.clear();
        let fleet = self.fleet.to_string();
        let row: Option<FleetTargets> = sqlx::query_as(
            "SELECT app_id, slug, target_release, target_os, target_agent, reboot_window, check_every_s
             FROM fleets WHERE fleet_id = $1",
        )
        .bind(&fleet)
        .fetch_optional(&mut **tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        self.slug = row.slug;
        let targets =
            [(Line::App, row.target_release), (Line::Os, row.target_os), (Line::Agent, row.target_agent)];
        // Its place in the chain was checked when it was uploaded. Read here and not from memory, so that no older one
        // can be gone by.
        let root: Option<Vec<u8>> = sqlx::query_scalar(
            "SELECT envelope FROM roots WHERE fleet_id = $1 ORDER BY version DESC LIMIT 1",
        )
        .bind(&fleet)
        .fetch_optional(&mut **tx)
        .await?;
        let Some(root) = root else { return Ok(None) };
        let variables = sqlx::query_as(
            "SELECT id, device_id, service, name, secret, value, version, updated_at FROM variables
             WHERE fleet_id = $1 ORDER BY device_id, service, name",
        )
        .bind(&fleet)
        .fetch_all(&mut **tx)
        .await?;
        Ok(Some(Setting {
            app_id: row.app_id.parse().map_err(Problem::internal)?,
            targets: targets.into_iter().filter_map(|(line, id)| Some((line, id?))).collect(),
            config: DeviceConfig {
                reboot_window: row.reboot_window.map(|w| w.parse()).transpose().map_err(Problem::internal)?,
                check_every_s: row.check_every_s.map(u32::try_from).transpose().map_err(Problem::internal)?,
                ..DeviceConfig::default()
            },
            root: Envelope::parse::<Root>(&root)
                .and_then(|envelope| verify::first_root(&envelope, self.fleet))
                .map_err(Problem::internal)?,
            variables,
        }))
    }

    /// One device. Answers its seq when it has an assignment.
    async fn refresh(&mut self, tx: &mut Tx, setting: &Setting, row: &Row) -> Result<Option<u64>> {
        let last = match (row.assign_epoch, row.seq) {
            (Some(epoch), Some(seq)) => Some((epoch.unsigned_abs(), seq.unsigned_abs())),
            _ => None,
        };
        let seq = last.map(|(_, seq)| seq);
        if row.state != "accepted" || row.clone_suspected {
            return Ok(seq);
        }
        let (release, held_back) = self.choose(tx, setting, row, Line::App).await?;
        let mut targets = Targets { app: target(row, Line::App, release.as_deref()), ..Targets::default() };
        for line in [Line::Os, Line::Agent] {
            let (chosen, held_back) = self.choose(tx, setting, row, line).await?;
            self.hold_back(tx, row, line, held_back.as_ref()).await?;
            *if line == Line::Os { &mut targets.os } else { &mut targets.agent } =
                target(row, line, chosen.as_deref());
        }
        let had_none = row.release_id.is_none() && row.os_id.is_none() && row.agent_id.is_none();
        if had_none && targets.app.is_none() && targets.os.is_none() && targets.agent.is_none() {
            self.hold_back(tx, row, Line::App, held_back.as_ref()).await?;
            return Ok(seq);
        }
        let to = Recipient {
            fleet_id: self.fleet,
            app_id: setting.app_id,
            device_id: row.device_id.parse().map_err(Problem::internal)?,
            key: row.public_key.parse().map_err(Problem::internal)?,
        };
        let (env, sealed) = match &release {
            Some(candidate) => self.variables(tx, setting, row, &to, &candidate.release).await?,
            None => Default::default(),
        };
        let mut assignment =
            content::draft(&to, &setting.root, &targets, env, sealed, setting.config.clone());
        let fingerprint = content::fingerprint(&assignment).map_err(Problem::internal)?.to_string();
        if row.content_sha256.as_deref() == Some(&fingerprint) {
            self.hold_back(tx, row, Line::App, held_back.as_ref()).await?;
            return Ok(seq);
        }
        let Some(next) = content::next_seq(last, setting.root.assign_epoch) else {
            tracing::warn!(device = %to.device_id, "Root's assign_epoch is below the last assignment's; none is made");
            return Ok(seq);
        };
        assignment.seq = next;
        assignment.issued_at = app::now();
        let envelope = Envelope::sign(&assignment, &[&self.app.keys.assign]).map_err(Problem::internal)?;
        let bytes = envelope.to_bytes();
        if bytes.len() > Assignment::MAX_BYTES {
            let reason = rows::reason(
                "assignment_too_large",
                format!(
                    "The device's variables make an assignment of {} bytes; devices take {}. Remove or shorten some.",
                    bytes.len(),
                    Assignment::MAX_BYTES
                ),
            );
            self.hold_back(tx, row, Line::App, Some(&reason)).await?;
            return Ok(seq);
        }
        self.hold_back(tx, row, Line::App, held_back.as_ref()).await?;
        let sha256 = envelope.payload_sha256();
        sqlx::query(
            "INSERT INTO assignments (device_id, assign_epoch, seq, sha256, content_sha256, release_id, envelope, issued_at,
                os_id, agent_id)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
             ON CONFLICT (device_id) DO UPDATE SET assign_epoch = excluded.assign_epoch, seq = excluded.seq,
                sha256 = excluded.sha256, content_sha256 = excluded.content_sha256, release_id = excluded.release_id,
                envelope = excluded.envelope, issued_at = excluded.issued_at, os_id = excluded.os_id,
                agent_id = excluded.agent_id",
        )
        .bind(&row.device_id)
        .bind(assignment.assign_epoch.cast_signed())
        .bind(next.cast_signed())
        .bind(sha256.to_string())
        .bind(&fingerprint)
        .bind(targets.app.map(|t| t.sha256.to_string()))
        .bind(&bytes)
        .bind(assignment.issued_at.cast_signed())
        .bind(targets.os.map(|t| t.sha256.to_string()))
        .bind(targets.agent.map(|t| t.sha256.to_string()))
        .execute(&mut **tx)
        .await?;
        self.marks.push((to.device_id, Mark { sha256, epoch: assignment.assign_epoch, seq: next }));
        Ok(Some(next))
    }

    /// The release of a line a device gets: what it should have where that fits, else what it was given before; and
    /// why it does not get what it should.
    async fn choose(
        &mut self,
        tx: &mut Tx,
        setting: &Setting,
        row: &Row,
        line: Line,
    ) -> Result<(Option<Arc<Candidate>>, Option<Reason>)> {
        let of = row.of(line);
        let given = match of.given {
            Some(id) => self.candidate(tx, setting, id).await?,
            None => None,
        };
        // An operating system or agent that was withdrawn is nobody's target any more; where it runs, it goes on without one.
        let given = given.filter(|c| line == Line::App || c.status != ReleaseStatus::Invalidated);
        let Some(wanted) = of.pinned.or_else(|| setting.targets.get(&line)) else {
            return Ok((given, None));
        };
        if of.given == Some(wanted) && (line == Line::App || given.is_some()) {
            // It has it: an invalidated release runs on where it runs.
            return Ok((given, None));
        }
        let Some(candidate) = self.candidate(tx, setting, wanted).await? else { return Ok((given, None)) };
        let committed = match of.committed {
            Some(id) => self.candidate(tx, setting, id).await?,
            None => None,
        };
        let place = Place {
            arch: &row.arch,
            device_type: &row.device_type,
            floor: committed.map_or(0, |c| c.release.rollback_floor),
        };
        match content::fits(&candidate, &setting.root, &place) {
            Ok(()) => Ok((Some(candidate), None)),
            Err(reason) => Ok((given, Some(*reason))),
        }
    }

    /// A release of this fleet.
    async fn candidate(
        &mut self,
        tx: &mut Tx,
        setting: &Setting,
        id: &str,
    ) -> Result<Option<Arc<Candidate>>> {
        if let Some(known) = self.candidates.get(id) {
            return Ok(known.clone());
        }
        let candidate = releases::candidate(tx, &setting.root, setting.app_id, id, self.documents.get(id))
            .await?
            .map(Arc::new);
        if let Some(found) = &candidate {
            self.documents.insert(id.to_owned(), Arc::clone(&found.release));
        }
        self.candidates.insert(id.to_owned(), candidate.clone());
        Ok(candidate)
    }

    /// The variables of a device, secret ones sealed. A ciphertext once made is used again.
    async fn variables(
        &self,
        tx: &mut Tx,
        setting: &Setting,
        row: &Row,
        to: &Recipient,
        release: &Release,
    ) -> Result<(EnvByService, SealedByService)> {
        let mut env = EnvByService::new();
        let mut sealed = SealedByService::new();
        let mode = setting.root.policy.env_mode;
        for (service, names) in resolve::resolve(&setting.variables, &row.device_id, release, mode) {
            for (name, variable) in names {
                if variable.secret {
                    let text = self.sealed(tx, row, to, &service, variable).await?;
                    sealed.entry(service.clone()).or_default().insert(name.to_owned(), text);
                } else {
                    let text = String::from_utf8(variable.value.clone()).map_err(Problem::internal)?;
                    env.entry(service.clone()).or_default().insert(name.to_owned(), text);
                }
            }
        }
        Ok((env, sealed))
    }

    async fn sealed(
        &self,
        tx: &mut Tx,
        row: &Row,
        to: &Recipient,
        service: &Name,
        variable: &Variable,
    ) -> Result<String> {
        let kept: Option<String> = sqlx::query_scalar(
            "SELECT ciphertext FROM sealed_secrets
             WHERE variable_id = $1 AND device_id = $2 AND service = $3 AND version = $4",
        )
        .bind(&variable.id)
        .bind(&row.device_id)
        .bind(service.as_str())
        .bind(variable.version)
        .fetch_optional(&mut **tx)
        .await?;
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let secret = self.app.keys.at_rest.open(&crate::variables::place(&variable.id), &variable.value)?;
        let context = seal::SealContext {
            fleet: to.fleet_id,
            device: to.device_id,
            app: to.app_id,
            service,
            variable: &variable.name,
        };
        let text = seal::seal(&row.seal_key, &context, &secret).map_err(Problem::internal)?;
        sqlx::query(
            "INSERT INTO sealed_secrets (variable_id, device_id, service, version, ciphertext)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (variable_id, device_id, service)
             DO UPDATE SET version = excluded.version, ciphertext = excluded.ciphertext",
        )
        .bind(&variable.id)
        .bind(&row.device_id)
        .bind(service.as_str())
        .bind(variable.version)
        .bind(&text)
        .execute(&mut **tx)
        .await?;
        Ok(text)
    }

    /// Writes down why a device does not get what it should of a line, where that changed.
    async fn hold_back(&mut self, tx: &mut Tx, row: &Row, line: Line, reason: Option<&Reason>) -> Result<()> {
        let text = rows::json(reason)?;
        if text.as_ref() == row.of(line).held_back {
            return Ok(());
        }
        let sql = by_line!(
            line,
            "UPDATE devices SET ",
            "held_back" | "held_back_os" | "held_back_agent",
            " = $2 WHERE device_id = $1"
        );
        sqlx::query(sql).bind(&row.device_id).bind(&text).execute(&mut **tx).await?;
        let device = row.device_id.parse().map_err(Problem::internal)?;
        if let Some(reason) = reason {
            let event = rows::NewEvent::new("held_back", reason.code.clone(), reason.message.clone());
            rows::add_events(tx, device, app::now(), &[event]).await?;
        }
        self.held.push(device);
        Ok(())
    }

    /// After the commit: memory, held polls and listeners.
    fn tell(&mut self) {
        for (device, mark) in &self.marks {
            self.app.devices.set_mark(*device, *mark);
        }
        let mut changed: Vec<DeviceId> = self.marks.drain(..).map(|(device, _)| device).collect();
        changed.append(&mut self.held);
        changed.sort_unstable();
        changed.dedup();
        let fleet_id = self.fleet.to_string();
        if changed.len() > TOLD_EACH {
            self.app.bus.publish(Event::Fleet { fleet_id, id: self.slug.clone() });
            return;
        }
        for device in changed {
            self.app.bus.publish(Event::Device { fleet_id: fleet_id.clone(), id: device.to_string() });
        }
    }
}
