//! Brings what a device sent within bounds: texts are short and steer nothing, lists are short, times are not in the future. Pure.

use std::collections::BTreeMap;

use copal_protocol::{
    telemetry::{Event, Facts, InterfaceFacts, MAX_EVENT, MAX_SERIES, MAX_SERVICES, Measured, Summary},
    text::one_line,
};
use serde_json::{Map, Value};

/// What the cloud itself notices of devices; a device cannot tell such things.
const OURS: &[&str] = &[
    "enrolled",
    "state",
    "presence",
    "command",
    "clone",
    "held_back",
    "reason",
    "lock",
    "root",
    "os",
    "gap",
];
/// How far a device's clock may be ahead.
const AHEAD_S: u64 = 300;

/// A moment a device told, as far as it can be believed.
fn moment(at: Option<u64>, now: u64) -> u64 {
    at.filter(|at| *at <= now + AHEAD_S).unwrap_or(now).min(now)
}

/// A word of a device: `snake_case`.
fn word(text: &str) -> String {
    let word: String = text.chars().take(32).collect();
    let sound = word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if sound && !word.is_empty() { word } else { "unreadable".to_owned() }
}

/// An event, and when it happened; also of what is none, since its number was given.
pub(super) fn event(item: &Value, now: u64) -> (Event, u64) {
    let read =
        if item.to_string().len() <= MAX_EVENT { serde_json::from_value(item.clone()).ok() } else { None };
    let event: Event = read.unwrap_or_else(|| Event {
        kind: "unreadable".to_owned(),
        code: "unreadable".to_owned(),
        message: "The device told something that is no event.".to_owned(),
        at: None,
        data: Map::new(),
    });
    let kind = word(&event.kind);
    let kind = if OURS.contains(&kind.as_str()) { format!("device_{kind}") } else { kind };
    let data =
        event.data.into_iter().take(16).map(|(name, value)| (one_line(&name, 32), plain(value, 4))).collect();
    let at = moment(event.at, now);
    (Event { kind, code: word(&event.code), message: one_line(&event.message, 300), at: Some(at), data }, at)
}

/// A value whose texts steer nothing.
fn plain(value: Value, depth: usize) -> Value {
    match value {
        Value::String(text) => Value::String(one_line(&text, 300)),
        Value::Array(_) | Value::Object(_) if depth == 0 => Value::Null,
        Value::Array(items) => items.into_iter().take(32).map(|item| plain(item, depth - 1)).collect(),
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .take(16)
                .map(|(name, value)| (one_line(&name, 32), plain(value, depth - 1)))
                .collect(),
        ),
        other => other,
    }
}

/// Spans of a batch, the oldest first. One that is undated, or dated in the future, ended when the next began: a day that
/// a device measured without a clock is a day, not one moment over and over.
pub(super) fn spans(mut spans: Vec<Summary>, now: u64) -> Vec<Summary> {
    let mut end = now;
    for span in spans.iter_mut().rev() {
        if span.at.is_none_or(|at| at > now + AHEAD_S) {
            span.at = Some(end);
        }
        end = moment(span.at, now).saturating_sub(u64::from(span.for_s).max(1));
    }
    spans.into_iter().map(|span| summary(span, now)).collect()
}

/// A span of metrics.
pub(super) fn summary(summary: Summary, now: u64) -> Summary {
    Summary {
        at: Some(moment(summary.at, now)),
        for_s: summary.for_s.min(7 * 86_400),
        device: measured(summary.device),
        services: summary
            .services
            .into_iter()
            .take(MAX_SERVICES)
            .map(|(name, of)| (one_line(&name, 63), measured(of)))
            .collect(),
        ..summary
    }
}

fn measured(of: Measured) -> Measured {
    fn few<T>(all: BTreeMap<String, T>) -> BTreeMap<String, T> {
        all.into_iter().filter(|(name, _)| word(name) == *name).take(MAX_SERIES).collect()
    }
    Measured { gauges: few(of.gauges), counters: few(of.counters) }
}

/// What a device has.
pub(super) fn facts(facts: Facts) -> Facts {
    let interface = |i: InterfaceFacts| InterfaceFacts {
        name: one_line(&i.name, 32),
        state: one_line(&i.state, 16),
        addresses: i.addresses.iter().take(8).map(|a| one_line(a, 64)).collect(),
        ..i
    };
    Facts {
        interfaces: facts.interfaces.into_iter().take(16).map(interface).collect(),
        proxy: facts.proxy.map(|p| one_line(&p, 200)),
        clock_source: one_line(&facts.clock_source, 64),
        boot_reason: word(&facts.boot_reason),
        kernel: one_line(&facts.kernel, 100),
        ..facts
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_what_the_device_said_within_bounds() {
        let wild = json!({"kind": "presence", "code": "Ünknown", "message": "a\u{1b}[2J\nb".repeat(100), "at": 9_999,
            "data": {"deep": [[[[[[1]]]]]], "text": "\u{202e}x"}});
        let (event, at) = event(&wild, 1_000);
        assert_eq!((event.kind.as_str(), event.code.as_str(), at), ("device_presence", "unreadable", 1_000));
        assert!(event.message.chars().count() <= 300 && !event.message.contains(['\u{1b}', '\n']));
        assert_eq!(event.data["text"], "x");
        assert_eq!(event.data["deep"], json!([[[[null]]]]));
        for none in [
            json!(null),
            json!({"kind": "x"}),
            json!({"kind": "x", "code": "y", "message": "z".repeat(5_000)}),
        ] {
            assert_eq!(super::event(&none, 5).0.kind, "unreadable");
        }
        let (event, at) = super::event(&json!({"kind": "boot", "code": "asked", "at": 900}), 1_000);
        assert_eq!((event.kind.as_str(), at), ("boot", 900), "what happened before is dated so");
    }

    #[test]
    fn spans_without_a_believable_time_end_where_the_next_began() {
        let span = |at: Option<u64>| Summary {
            at,
            for_s: 3_600,
            samples: 1,
            device: Measured::default(),
            services: BTreeMap::new(),
        };
        let dated = |spans: Vec<Option<u64>>| -> Vec<Option<u64>> {
            super::spans(spans.into_iter().map(span).collect(), 100_000).iter().map(|span| span.at).collect()
        };
        assert_eq!(dated(vec![None, None, None]), [Some(92_800), Some(96_400), Some(100_000)]);
        assert_eq!(dated(vec![None, Some(50_000)]), [Some(46_400), Some(50_000)]);
        assert_eq!(dated(vec![Some(u64::MAX), Some(99_000)]), [Some(95_400), Some(99_000)]);
        assert_eq!(dated(vec![Some(90_000), Some(93_600)]), [Some(90_000), Some(93_600)]);
    }

    #[test]
    fn a_span_has_no_more_series_than_it_may() {
        let many: BTreeMap<String, u64> = (0..100).map(|n| (format!("c{n}"), 1)).collect();
        let device = Measured { gauges: BTreeMap::new(), counters: many };
        let services = (0..100).map(|n| (format!("s{n}"), device.clone())).collect();
        let clean =
            summary(Summary { at: Some(u64::MAX), for_s: u32::MAX, samples: 1, device, services }, 1_000);
        assert_eq!((clean.at, clean.device.counters.len(), clean.services.len()), (Some(1_000), 16, 32));
    }
}
