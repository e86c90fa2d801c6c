//! What is set, and what is on trial beside it (file `network`). Pure.

use serde::{Deserialize, Serialize};

/// What can be set.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The proxy; absent: what the agent's environment says. May hold a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// The time servers; none: the system's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ntp: Vec<String>,
}

/// A change of these: what is absent stays.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// A proxy's URL, or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// Time servers; none: the system's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ntp: Option<Vec<String>>,
}

/// How the last change ended.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Last {
    /// The change.
    pub change: Change,
    /// Whether it stayed.
    pub kept: bool,
    /// For people; no secret in it.
    pub message: String,
}

/// Everything kept.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What holds, and what a trial goes back to.
    #[serde(default)]
    pub now: Settings,
    /// What is on trial; there is one for as long as the cloud was not reached with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Change>,
    /// How the last one ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Last>,
}

impl Settings {
    /// With this changed.
    #[must_use]
    pub fn with(&self, change: &Change) -> Self {
        let proxy = match change.proxy.as_deref() {
            None => self.proxy.clone(),
            Some(copal_protocol::network::NONE) => None,
            Some(proxy) => Some(proxy.to_owned()),
        };
        Self { proxy, ntp: change.ntp.clone().unwrap_or_else(|| self.ntp.clone()) }
    }
}

impl Record {
    /// A change is tried.
    #[must_use]
    pub fn trying(&self, change: Change) -> Self {
        Self { trial: Some(change), ..self.clone() }
    }

    /// What was tried stays.
    #[must_use]
    pub fn kept(&self, message: &str) -> Self {
        let Some(change) = self.trial.clone() else { return self.clone() };
        let now = self.now.with(&change);
        Self { now, trial: None, last: Some(Last { change, kept: true, message: message.to_owned() }) }
    }

    /// What was tried is undone.
    #[must_use]
    pub fn reverted(&self, message: &str) -> Self {
        let Some(change) = self.trial.clone() else { return self.clone() };
        let last = Some(Last { change, kept: false, message: message.to_owned() });
        Self { now: self.now.clone(), trial: None, last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(proxy: Option<&str>, ntp: Option<&[&str]>) -> Change {
        let ntp = ntp.map(|list| list.iter().map(|s| (*s).to_owned()).collect());
        Change { proxy: proxy.map(str::to_owned), ntp }
    }

    #[test]
    fn a_trial_becomes_what_holds_or_leaves_no_trace_in_it() {
        let record = Record::default().trying(change(Some("http://p:1"), Some(&["a"]))).kept("reached");
        assert_eq!((record.now.proxy.as_deref(), record.now.ntp.len()), (Some("http://p:1"), 1));
        assert!(record.trial.is_none() && record.last.as_ref().unwrap().kept);
        let after = record.trying(change(Some("none"), None)).reverted("not reached");
        assert!(after.now == record.now && after.trial.is_none() && !after.last.as_ref().unwrap().kept);
        let after = after.trying(change(Some("none"), None)).kept("reached");
        assert!(after.now.proxy.is_none() && after.now.ntp == ["a"], "what is absent stays");
        assert!(after.trying(change(None, Some(&[]))).kept("").now == Settings::default());
        assert!(after.kept("x") == after && after.reverted("x") == after, "without a trial nothing ends");
    }

    #[test]
    fn what_is_written_reads_back() {
        let record = Record::default()
            .trying(change(Some("http://p:1"), None))
            .kept("x")
            .trying(change(None, Some(&[])));
        let text = serde_json::to_string(&record).unwrap();
        assert!(serde_json::from_str::<Record>(&text).unwrap() == record);
    }
}
