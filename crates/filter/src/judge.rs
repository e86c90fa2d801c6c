//! The tree and one device: yes or no.

use std::collections::BTreeMap;

use crate::{Check, Expr, Field, Test, parse::version};

/// What is known of a device.
#[derive(Debug, Clone)]
pub struct Device<'a> {
    /// What people call it.
    pub name: &'a str,
    /// Its id.
    pub id: &'a str,
    /// Whether it was let in.
    pub state: &'a str,
    /// Whether it holds a connection or was heard of late.
    pub online: bool,
    /// Seconds since it was heard; `None` where it never was.
    pub seen_ago: Option<u64>,
    /// Version of its agent.
    pub agent: Option<&'a str>,
    /// Version or name of its operating system.
    pub os: Option<&'a str>,
    /// Version of the release it committed to.
    pub release: Option<&'a str>,
    /// Code of why it is not on its target.
    pub reason: Option<&'a str>,
    /// OCI architecture.
    pub arch: &'a str,
    /// What it is.
    pub device_type: &'a str,
    /// Whether it runs exactly what it should.
    pub on_target: bool,
    /// Whether it is pinned to a release.
    pub pinned: bool,
    /// The worst verdict its health checks last found.
    pub health: Option<&'a str>,
    /// What each of these last found.
    pub checks: &'a BTreeMap<String, String>,
    /// Its tags.
    pub tags: &'a BTreeMap<String, String>,
}

impl Device<'_> {
    fn text(&self, field: &Field) -> Option<&str> {
        match field {
            Field::Name => Some(self.name),
            Field::Id => Some(self.id),
            Field::State => Some(self.state),
            Field::Agent => self.agent,
            Field::Os => self.os,
            Field::Release => self.release,
            Field::Reason => self.reason,
            Field::Arch => Some(self.arch),
            Field::DeviceType => Some(self.device_type),
            Field::Tag(key) => self.tags.get(key).map(String::as_str),
            Field::Health => self.health,
            Field::Check(name) => self.checks.get(name).map(String::as_str),
            Field::Online | Field::OnTarget | Field::Pinned | Field::LastSeen => None,
        }
    }

    fn flag(&self, field: &Field) -> bool {
        match field {
            Field::Online => self.online,
            Field::OnTarget => self.on_target,
            Field::Pinned => self.pinned,
            _ => false,
        }
    }
}

pub(crate) fn judge(expr: &Expr, device: &Device<'_>) -> bool {
    match expr {
        Expr::And(parts) => parts.iter().all(|part| judge(part, device)),
        Expr::Or(parts) => parts.iter().any(|part| judge(part, device)),
        Expr::Not(inner) => !judge(inner, device),
        Expr::Test(test) => holds(test, device),
    }
}

fn holds(test: &Test, device: &Device<'_>) -> bool {
    let text = device.text(&test.field);
    match &test.check {
        Check::Equals(wanted) => text == Some(wanted),
        Check::Differs(other) => text != Some(other),
        Check::Like(pattern) => text.is_some_and(|text| pattern.matches(text)),
        Check::In(values) => text.is_some_and(|text| values.iter().any(|v| v == text)),
        Check::Version(order, than) => {
            text.and_then(version).is_some_and(|v| order.holds(v.cmp_precedence(than)))
        }
        Check::Ago(order, seconds) => device.seen_ago.is_some_and(|ago| order.holds(ago.cmp(seconds))),
        Check::Is(flag) => device.flag(&test.field) == *flag,
        Check::There => match test.field {
            Field::LastSeen => device.seen_ago.is_some(),
            _ => text.is_some(),
        },
    }
}
