//! The chain of the audit log: each row carries the hash of the one before it, so that a row that was changed, removed or put
//! elsewhere is seen by whoever recomputes the hashes, without trust in who keeps the log.
//!
//! In: rows as the API and the database hold them. Out: the hash of a row; which row of a log is the first that does not fit.
//! Never here: where rows come from.
//!
//! A chain does not show that its **end** was cut off, or that all of it was written anew: for that, somebody notes the newest
//! hash elsewhere, and [`Chain::since`] asks whether the log still holds it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// What the row before the first has for a hash.
pub const START: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Stands before everything that is hashed here, so that a hash of a row is a hash of nothing else.
const DOMAIN: &[u8] = b"copal-audit-v1\0";

/// One act.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Rises by one with each act, from 1.
    pub id: i64,
    /// Unix seconds.
    pub at: i64,
    /// `anna@example.org`, `token:ci (anna@example.org)` or `system`.
    pub who: String,
    /// The address it came from.
    pub from: String,
    /// What was done, as `fleet.create`.
    pub verb: String,
    /// To what, as `fleet:greenhouse`.
    pub object: String,
    /// Why, where whoever did it said so.
    #[serde(default)]
    pub why: String,
    /// What else matters.
    pub detail: Value,
}

impl Entry {
    /// The hash of this row after one with the hash `before`, as 64 hex digits: SHA-256 over `copal-audit-v1`, a zero byte, and
    /// then, each after its length in bytes as eight bytes (big-endian): `before`, `id`, `at` (decimal), `who`, `from`, `verb`,
    /// `object`, `why`, and `detail` as JSON without spaces, its keys in the order of their bytes.
    #[must_use]
    pub fn hash(&self, before: &str) -> String {
        let mut detail = String::new();
        canonical(&self.detail, &mut detail);
        let (id, at) = (self.id.to_string(), self.at.to_string());
        let mut sum = Sha256::new_with_prefix(DOMAIN);
        for field in [before, &id, &at, &self.who, &self.from, &self.verb, &self.object, &self.why, &detail] {
            sum.update((field.len() as u64).to_be_bytes());
            sum.update(field.as_bytes());
        }
        hex::encode(sum.finalize())
    }
}

/// JSON in the one way that is hashed.
fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort();
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                canonical(&fields[key], out);
            }
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// A row with the hash it is kept with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The act.
    #[serde(flatten)]
    pub entry: Entry,
    /// Of the act and all before it, 64 hex digits.
    pub hash: String,
}

/// Checks a log, newest row first, one row at a time.
#[derive(Debug, Default)]
pub struct Chain {
    since: Option<String>,
    verdict: Verdict,
    newer: Option<Row>,
}

/// What a log is found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Rows read.
    pub rows: u64,
    /// Id and hash of the newest row: what to note down.
    pub head: Option<(i64, String)>,
    /// The first row, by age, that does not fit.
    pub broken: Option<Break>,
    /// Of a hash that was noted earlier: the id of the row that has it.
    pub since: Option<i64>,
}

/// A row that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Break {
    /// Its id.
    pub id: i64,
    /// What is wrong with it.
    pub how: How,
}

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// The hash is not that of its content after the row before it: one of both was changed.
    Changed,
    /// Rows right before it are missing.
    Gap,
    /// A row that stands before it has not a smaller id.
    Order,
}

impl std::fmt::Display for Break {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let id = self.id;
        match self.how {
            How::Changed => {
                write!(
                    f,
                    "row {id} does not have the hash that follows from it and the row before: one of both was changed"
                )
            }
            How::Gap => write!(f, "rows right before row {id} are missing"),
            How::Order => write!(f, "row {id} stands in another place than its id says"),
        }
    }
}

impl Chain {
    /// Looks for the row with this hash, noted earlier, too.
    #[must_use]
    pub fn since(hash: Option<&str>) -> Self {
        Self { since: hash.map(str::to_ascii_lowercase), ..Self::default() }
    }

    /// Takes the next older row. False where there is no point in going on, since ids do not fall.
    pub fn older(&mut self, row: Row) -> bool {
        self.verdict.rows += 1;
        if self.verdict.head.is_none() {
            self.verdict.head = Some((row.entry.id, row.hash.clone()));
        }
        if self.since.as_deref() == Some(row.hash.as_str()) {
            self.verdict.since = Some(row.entry.id);
        }
        let falls = self.newer.as_ref().is_none_or(|newer| row.entry.id < newer.entry.id);
        self.judge(Some(&row));
        self.newer = falls.then_some(row);
        falls
    }

    /// After the oldest row: what the log is.
    #[must_use]
    pub fn end(mut self) -> Verdict {
        self.judge(None);
        self.verdict
    }

    /// Judges the newer row by the one before it. Rows come newest first, so what is found last is the first by age.
    fn judge(&mut self, before: Option<&Row>) {
        let Some(newer) = &self.newer else { return };
        let (id, hash) = before.map_or((0, START), |row| (row.entry.id, row.hash.as_str()));
        let how = if id >= newer.entry.id {
            How::Order
        } else if newer.entry.id.checked_sub(id) != Some(1) {
            How::Gap
        } else if newer.entry.hash(hash) != newer.hash {
            How::Changed
        } else {
            return;
        };
        self.verdict.broken = Some(Break { id: newer.entry.id, how });
    }
}

impl Verdict {
    /// Whether every row fits and, where a hash was to be looked for, it was found.
    #[must_use]
    pub fn good(&self, since: bool) -> bool {
        self.broken.is_none() && (!since || self.since.is_some())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn log(count: i64) -> Vec<Row> {
        let mut before = START.to_owned();
        let mut rows = Vec::new();
        for id in 1..=count {
            let entry = Entry {
                id,
                at: 1_700_000_000 + id,
                who: "anna@example.org".to_owned(),
                from: "192.0.2.1".to_owned(),
                verb: "device.revoke".to_owned(),
                object: format!("device:{id}"),
                why: String::new(),
                detail: json!({"b": [1, {"z": null, "a": "é\n"}], "a": true}),
            };
            before = entry.hash(&before);
            rows.push(Row { entry, hash: before.clone() });
        }
        rows
    }

    /// Makes the hashes fit again from this row on, as someone does who knows how.
    fn rehash(rows: &mut [Row], from: usize) {
        for i in from..rows.len() {
            let before = if i == 0 { START.to_owned() } else { rows[i - 1].hash.clone() };
            rows[i].hash = rows[i].entry.hash(&before);
        }
    }

    fn judged(rows: &[Row], since: Option<&str>) -> Verdict {
        let mut chain = Chain::since(since);
        for row in rows.iter().rev() {
            if !chain.older(row.clone()) {
                break;
            }
        }
        chain.end()
    }

    fn broken(rows: &[Row]) -> Option<(i64, How)> {
        judged(rows, None).broken.map(|b| (b.id, b.how))
    }

    #[test]
    fn the_hash_of_a_row_is_fixed_for_ever() {
        let rows = log(2);
        // Computed once by another implementation from the bytes described at `Entry::hash`.
        assert_eq!(rows[0].hash, "558043d0328fa834931ebbf74aaee87fa5a69d028d04ccfb7664f020ca00a8e4");
        assert_eq!(rows[1].hash, "27f98aaf1e979e6fd63b490bc19d6db58ce349eac0c571f927c9a106ae43aafa");
        let text = r#"{"a":true,"b":[1,{"a":"é\n","z":null}]}"#;
        let mut same = rows[0].entry.clone();
        same.detail = serde_json::from_str(text).unwrap();
        assert_eq!(same.hash(START), rows[0].hash, "the order of keys does not matter");
    }

    #[test]
    fn a_whole_log_is_unbroken_and_shows_its_head() {
        let rows = log(5);
        let verdict = judged(&rows, Some(&rows[2].hash.to_uppercase()));
        assert!(verdict.good(true), "{verdict:?}");
        assert_eq!((verdict.rows, verdict.since), (5, Some(3)));
        assert_eq!(verdict.head, Some((5, rows[4].hash.clone())));
        let empty = judged(&[], None);
        assert!(empty.good(false) && empty.head.is_none());
        assert!(!judged(&[], Some(&rows[0].hash)).good(true), "a noted hash is not in an empty log");
    }

    #[test]
    fn a_changed_row_is_seen_whatever_of_it_was_changed() {
        type Change = fn(&mut Entry);
        let changes: [(&str, Change); 7] = [
            ("at", |e| e.at -= 1),
            ("who", |e| e.who = "bob@example.org".to_owned()),
            ("from", |e| e.from.clear()),
            ("verb", |e| e.verb.push('d')),
            ("object", |e| e.object = "device:9".to_owned()),
            ("why", |e| e.why = "asked to".to_owned()),
            ("detail", |e| e.detail["a"] = json!(false)),
        ];
        for (what, change) in changes {
            let mut rows = log(6);
            change(&mut rows[2].entry);
            assert_eq!(broken(&rows), Some((3, How::Changed)), "{what}");
            // Its own hash made to fit breaks the row after it.
            rows[2].hash = rows[2].entry.hash(&rows[1].hash);
            assert_eq!(broken(&rows), Some((4, How::Changed)), "{what}");
        }
        // Moving text from one field into the next gives other bytes, too.
        let mut rows = log(1);
        rows[0].entry.verb = "device.revok".to_owned();
        rows[0].entry.object = "edevice:1".to_owned();
        assert_eq!(broken(&rows), Some((1, How::Changed)));
    }

    #[test]
    fn rows_that_are_missing_or_elsewhere_are_seen() {
        let mut rows = log(6);
        rows.remove(3);
        assert_eq!(broken(&rows), Some((5, How::Gap)));
        let mut rows = log(6);
        rows.remove(0);
        assert_eq!(broken(&rows), Some((2, How::Gap)));
        // Renumbered, so that no gap shows.
        let mut rows = log(6);
        rows.remove(3);
        rows[3].entry.id = 4;
        rows[4].entry.id = 5;
        assert_eq!(broken(&rows), Some((4, How::Changed)));
        let mut rows = log(6);
        rows.swap(2, 3);
        assert_eq!(broken(&rows).map(|b| b.1), Some(How::Order));
        let mut rows = log(6);
        rows.swap(2, 3);
        rows[2].entry.id = 3;
        rows[3].entry.id = 4;
        assert_eq!(broken(&rows), Some((3, How::Changed)));
    }

    #[test]
    fn an_end_cut_off_or_a_log_written_anew_is_seen_by_who_noted_a_hash() {
        let whole = log(6);
        let noted = whole[5].hash.as_str();
        let cut = &whole[..4];
        assert!(judged(cut, None).good(false), "nothing in what is left tells");
        assert!(!judged(cut, Some(noted)).good(true));
        let mut anew = log(7);
        anew[1].entry.who = "nobody".to_owned();
        rehash(&mut anew, 1);
        assert!(judged(&anew, None).good(false), "all of it fits together");
        let verdict = judged(&anew, Some(noted));
        assert_eq!((verdict.since, verdict.good(true)), (None, false));
        assert!(judged(&anew, Some(&whole[0].hash)).good(true), "what was before the change is still there");
    }
}
