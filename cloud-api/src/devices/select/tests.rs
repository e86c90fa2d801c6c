//! The database and the pure judge mean the same devices; pages are right; indexes are used.

use std::collections::BTreeMap;

use copal_filter::{Check, Device, Expr, Field, Filter, Order, Pattern, STATES, Test, VERDICTS};
use proptest::{
    prelude::*,
    sample::select,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};
use serde_json::json;
use sqlx::Row as _;

use super::{condition, is_exact};
use crate::{
    api::{Paging, device_filter, device_views::Viewer},
    app,
    devices::rows::{self, Known, state_from},
    store::fleets::{self, FleetRow},
    testing::Cloud,
};

/// Versions of releases `r0` to `r2`; there is no `r3`.
const VERSIONS: &[&str] = &["1.0.0", "1.2.0", "1.10.0-rc.1"];
const AGENTS: &[&str] = &["0.3.0", "0.10.1", "odd"];
const SYSTEMS: &[&str] = &["1.4.0", "Debian GNU/Linux 12"];
const NAMES: &[&str] = &["pi-1", "pi-2", "Pi-2", "[a]b", "gate é"];
const VALUES: &[&str] = &["paris", "rome", "", "[a]b"];

/// A device as it is put into the database, and what is to be known of it.
#[derive(Debug, Clone)]
struct Spec {
    name: &'static str,
    state: &'static str,
    /// Seconds ago; a while in the future is now.
    seen: Option<i64>,
    agent: Option<&'static str>,
    os: Option<&'static str>,
    host_os: Option<&'static str>,
    committed: Option<usize>,
    held_back: bool,
    /// Whether it was given what it committed to, and whether it said so.
    given: Option<bool>,
    pinned: bool,
    checks: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
}

fn spec() -> impl Strategy<Value = Spec> {
    let maybe = |of: &'static [&'static str]| proptest::option::of(select(of));
    let tags = proptest::collection::btree_map(select(&["site", "ring"]), select(VALUES), 0..3);
    let checks = proptest::collection::btree_map(select(&["disk", "clock"]), select(VERDICTS), 0..3);
    let seen = select(&[None, Some(-3_600), Some(3_600), Some(300_000)]);
    (
        (select(NAMES), select(STATES), seen, maybe(AGENTS), maybe(SYSTEMS), maybe(SYSTEMS)),
        (
            proptest::option::of(0..4_usize),
            prop::bool::weighted(0.2),
            any::<Option<bool>>(),
            any::<bool>(),
            checks,
            tags,
        ),
    )
        .prop_map(
            |(
                (name, state, seen, agent, os, host_os),
                (committed, held_back, given, pinned, checks, tags),
            )| Spec {
                name,
                state,
                seen,
                agent,
                os,
                host_os,
                committed,
                held_back,
                given: given.filter(|_| committed.is_some()),
                pinned,
                checks: checks.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
                tags: tags.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            },
        )
}

impl Spec {
    fn online(&self) -> bool {
        self.seen.is_some_and(|ago| ago < 0) && matches!(self.state, "accepted" | "preauthorised")
    }

    fn reason(&self) -> Option<&'static str> {
        match (self.state, self.seen) {
            ("pending", _) => Some("pending"),
            ("rejected", _) => Some("rejected"),
            ("revoked", _) => Some("revoked"),
            (_, None) => Some("never_seen"),
            _ if self.held_back => Some("incompatible"),
            _ => match self.given {
                None => Some("no_release"),
                Some(true) => None,
                Some(false) if self.online() => Some("updating"),
                Some(false) => Some("offline"),
            },
        }
    }

    fn device<'a>(&'a self, id: &'a str) -> Device<'a> {
        Device {
            name: self.name,
            id,
            state: self.state,
            online: self.online(),
            seen_ago: self.seen.map(|ago| u64::try_from(ago).unwrap_or(0)),
            agent: self.agent,
            os: self.host_os.or(self.os),
            release: self.committed.and_then(|n| VERSIONS.get(n)).copied(),
            reason: self.reason(),
            arch: "arm64",
            device_type: "generic",
            on_target: self.reason().is_none(),
            pinned: self.pinned,
            health: self.health(),
            checks: &self.checks,
            tags: &self.tags,
        }
    }

    fn health(&self) -> Option<&'static str> {
        VERDICTS.iter().rev().find(|worst| self.checks.values().any(|v| v == *worst)).copied()
    }

    async fn insert(&self, cloud: &Cloud, fleet: &FleetRow, id: &str) {
        let now = app::now_i64();
        let held_back = self.held_back.then(|| json!(rows::reason("incompatible", "")).to_string());
        let host = self
            .host_os
            .map(|version| json!({"backend": "grub", "version": version, "slots": {}}).to_string());
        let mut tx = cloud.app.db.write().await.unwrap();
        sqlx::query(
            "INSERT INTO devices (device_id, fleet_id, name, state, public_key, seal_key, arch, device_type, created_at,
                last_seen, agent_version, os_version, host_report, committed_release, held_back, pinned_release,
                report_epoch, seq_applied, health)
             VALUES ($1, $2, $3, $4, $1, '', 'arm64', 'generic', 1, $5, $6, $7, $8, $9, $10, $11, 1, $12, $13)",
        )
        .bind(id)
        .bind(fleet.fleet_id.to_string())
        .bind(self.name)
        .bind(self.state)
        .bind(self.seen.map(|ago| now - ago))
        .bind(self.agent)
        .bind(self.os)
        .bind(host)
        .bind(self.committed.map(|n| format!("r{n}")))
        .bind(held_back)
        .bind(self.pinned.then_some("r0"))
        .bind(i64::from(self.given == Some(true)))
        .bind(self.health())
        .execute(&mut *tx)
        .await
        .unwrap();
        for (key, value) in &self.tags {
            let insert = sqlx::query("INSERT INTO device_tags VALUES ($1, $2, $3)");
            insert.bind(id).bind(key).bind(value).execute(&mut *tx).await.unwrap();
        }
        for (name, verdict) in &self.checks {
            let insert = sqlx::query(
                "INSERT INTO device_checks (device_id, name, verdict, at, since) VALUES ($1, $2, $3, 1, 1)",
            );
            insert.bind(id).bind(name).bind(verdict).execute(&mut *tx).await.unwrap();
        }
        if let (Some(_), Some(n)) = (self.given, self.committed) {
            sqlx::query("INSERT INTO assignments VALUES ($1, 1, 1, '', '', $2, X'', 1, NULL, NULL)")
                .bind(id)
                .bind(format!("r{n}"))
                .execute(&mut *tx)
                .await
                .unwrap();
        }
        tx.commit().await.unwrap();
        cloud.app.devices.add(&Known {
            device_id: id.parse().unwrap(),
            fleet_id: fleet.fleet_id,
            state: state_from(self.state).unwrap(),
            last_seen: self.seen.map(|ago| (now - ago).unsigned_abs()),
            expected: None,
            mark: None,
        });
    }
}

fn test() -> impl Strategy<Value = Expr> {
    let order = || select(&[Order::Below, Order::AtMost, Order::Above, Order::AtLeast]);
    let text = |field: Field, of: &'static [&'static str]| {
        let word = move || select(of).prop_map(str::to_owned);
        let pattern = select(&["*", "p*", "*-2", "?i-*", "[a]*", "*r*", "gate ?", ""]);
        let check = prop_oneof![
            word().prop_map(Check::Equals),
            word().prop_map(Check::Differs),
            proptest::collection::vec(word(), 1..3).prop_map(Check::In),
            pattern.prop_map(|p| Check::Like(Pattern::new(p).unwrap())),
        ];
        check.prop_map(move |check| Test { field: field.clone(), check })
    };
    let version = move |field: Field, of: &'static [&'static str]| {
        let versions = select(VERSIONS).prop_map(|v| v.parse().unwrap());
        let check = (order(), versions).prop_map(|(order, version)| Check::Version(order, version));
        let ordered = {
            let field = field.clone();
            check.prop_map(move |check| Test { field: field.clone(), check })
        };
        prop_oneof![text(field, of), ordered]
    };
    let flag = select(&[Field::Online, Field::OnTarget, Field::Pinned]);
    let there = select(vec![
        Field::LastSeen,
        Field::Agent,
        Field::Os,
        Field::Release,
        Field::Reason,
        Field::Health,
        Field::Check("disk".to_owned()),
        Field::Tag("site".to_owned()),
    ]);
    let ago = (order(), select(&[600_u64, 7_200, 86_400]));
    prop_oneof![
        text(Field::Name, NAMES),
        text(Field::State, STATES),
        text(Field::Reason, &["updating", "offline", "incompatible", "pending"]),
        text(Field::Arch, &["arm64", "amd64"]),
        text(Field::Health, VERDICTS),
        text(Field::Check("disk".to_owned()), VERDICTS),
        text(Field::Tag("site".to_owned()), VALUES),
        text(Field::Tag("ring".to_owned()), VALUES),
        version(Field::Release, VERSIONS),
        version(Field::Agent, AGENTS),
        version(Field::Os, SYSTEMS),
        (flag, any::<bool>()).prop_map(|(field, flag)| Test { field, check: Check::Is(flag) }),
        there.prop_map(|field| Test { field, check: Check::There }),
        ago.prop_map(|(order, s)| Test { field: Field::LastSeen, check: Check::Ago(order, s) }),
    ]
    .prop_map(Expr::Test)
}

fn expr() -> impl Strategy<Value = Expr> {
    test().prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Expr::all),
            proptest::collection::vec(inner.clone(), 2..4).prop_map(Expr::any_of),
            inner.prop_map(|e| Expr::Not(Box::new(e))),
        ]
    })
}

/// A cloud with a fleet, another fleet that must never show, and these devices in the first.
async fn world(specs: &[Spec]) -> (Cloud, FleetRow, Vec<String>) {
    let cloud = Cloud::new().await;
    let anna = cloud.user("anna@example.org", crate::auth::Role::Owner).await;
    for slug in ["porch", "other"] {
        let body = json!({"slug": slug, "device_type": "generic", "arch": "arm64"});
        assert!(cloud.call("POST", "/api/v1/fleets", &anna, Some(body)).await.status.is_success());
    }
    let fleet = fleets::by_slug(&cloud.app, "porch").await.unwrap();
    let other = fleets::by_slug(&cloud.app, "other").await.unwrap();
    let mut tx = cloud.app.db.write().await.unwrap();
    for (n, version) in VERSIONS.iter().enumerate() {
        sqlx::query(
            "INSERT INTO releases (id, fleet_id, counter, version, source, branch, status, note, envelope, size, created_at)
             VALUES ($1, $2, $3, $4, '', '', 'final', '', X'', 1, 1)",
        )
        .bind(format!("r{n}"))
        .bind(fleet.fleet_id.to_string())
        .bind(i64::try_from(n).unwrap())
        .bind(version)
        .execute(&mut *tx)
        .await
        .unwrap();
    }
    tx.commit().await.unwrap();
    let mut ids = Vec::new();
    for (n, spec) in specs.iter().enumerate() {
        // Ids that do not rise as rows were made.
        let id = format!("{:032x}", (n * 7_919) % 10_007);
        spec.insert(&cloud, &fleet, &id).await;
        spec.insert(&cloud, &other, &format!("{:032x}", 20_000 + n)).await;
        ids.push(id);
    }
    (cloud, fleet, ids)
}

/// What the condition alone lets through.
async fn let_through(cloud: &Cloud, fleet: &FleetRow, filter: &Filter) -> Vec<String> {
    let id = fleet.fleet_id.to_string();
    let mut query = sqlx::QueryBuilder::new("SELECT d.device_id FROM devices d WHERE d.fleet_id = ");
    query.push_bind(id.clone()).push(" AND ");
    condition(&mut query, filter, &id);
    query.push(" ORDER BY d.device_id");
    query.build_query_scalar().fetch_all(cloud.app.db.read()).await.unwrap()
}

/// Every page, put together.
async fn paged(cloud: &Cloud, fleet: &FleetRow, filter: &Filter, limit: u32) -> Vec<String> {
    let viewer = Viewer::new(&cloud.app, fleet).await.unwrap();
    let (mut out, mut after) = (Vec::new(), None);
    loop {
        let paging = Paging::new(Some(limit), after);
        let page = device_filter::page(&cloud.app, &viewer, fleet, Some(filter), &paging).await.unwrap();
        assert!(page.items.len() <= limit as usize);
        assert!(page.next.is_none() || page.items.len() == limit as usize, "a page but the last is full");
        out.extend(page.items.into_iter().map(|row| row.device_id));
        match page.next {
            Some(next) => after = Some(next),
            None => return out,
        }
    }
}

#[test]
fn the_database_means_the_devices_that_the_pure_judge_means_and_pages_hold_each_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(250) });
    let specs = proptest::collection::vec(spec(), 30).new_tree(&mut runner).unwrap().current();
    let (cloud, fleet, ids) = runtime.block_on(world(&specs));
    let (mut exact, mut some) = (0, 0);
    for _ in 0..250 {
        let filter = Filter::from(expr().new_tree(&mut runner).unwrap().current());
        let mut meant: Vec<String> = ids
            .iter()
            .zip(&specs)
            .filter(|(id, spec)| filter.matches(&spec.device(id)))
            .map(|(id, _)| id.clone())
            .collect();
        meant.sort();
        some += usize::from(!meant.is_empty() && meant.len() < ids.len());
        runtime.block_on(async {
            let through = let_through(&cloud, &fleet, &filter).await;
            if is_exact(&filter) {
                exact += 1;
                assert_eq!(through, meant, "{filter}");
            } else {
                assert!(
                    meant.iter().all(|id| through.contains(id)),
                    "{filter}: the database hides one that is meant"
                );
            }
            assert_eq!(paged(&cloud, &fleet, &filter, 4).await, meant, "{filter}");
            assert_eq!(device_filter::all(&cloud.app, &fleet, &filter).await.unwrap(), meant, "{filter}");
        });
    }
    assert!(
        exact > 30 && some > 100,
        "{exact} were exact, {some} told devices apart: the filters tried tell too little"
    );
}

#[tokio::test]
async fn filters_by_fleet_and_tag_use_an_index() {
    let cloud = Cloud::new().await;
    let plan = async |text: &str| -> String {
        let filter: Filter = text.parse().unwrap();
        let mut query = sqlx::QueryBuilder::new(concat!(
            "EXPLAIN QUERY PLAN ",
            rows::select_device!("WHERE d.fleet_id = ")
        ));
        query.push_bind("f").push(" AND d.device_id > ").push_bind("").push(" AND ");
        condition(&mut query, &filter, "f");
        query.push(" ORDER BY d.device_id LIMIT 101");
        let steps = query.build().fetch_all(cloud.app.db.read()).await.unwrap();
        steps.iter().map(|row| row.get::<String, _>("detail")).collect::<Vec<_>>().join("\n")
    };
    for text in [
        "tag.site = paris",
        "tag.site ~ par*",
        "has tag.site and tag.ring in (a, b)",
        "not tag.site = paris",
        "release = 1.2.0",
        "name = x",
        "state = accepted and tag.site != paris",
    ] {
        let plan = plan(text).await;
        assert!(
            !plan.contains("SCAN d\n") && !plan.contains("SCAN d ") && !plan.ends_with("SCAN d"),
            "{text}: {plan}"
        );
        assert!(plan.contains("SEARCH d USING INDEX"), "{text}: {plan}");
        assert!(!plan.contains("SCAN t") && !plan.contains("SCAN r"), "{text}: {plan}");
        assert!(
            !plan.contains("TEMP B-TREE FOR ORDER BY"),
            "{text}: pages come in the order of the index: {plan}"
        );
        if text.contains("tag.") {
            assert!(plan.contains("USING COVERING INDEX device_tags_by_value (key=?"), "{text}: {plan}");
        }
    }
    assert!(plan("tag.site = paris").await.contains("device_tags_by_value (key=? AND value=?)"));
    assert!(
        plan("release = 1.2.0").await.contains("releases_by_version (fleet_id=? AND line=? AND version=?)")
    );
}
