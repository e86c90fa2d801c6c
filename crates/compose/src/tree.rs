//! YAML text to a tree in which every node knows its line, its column and its path.
//!
//! In: the text of a compose file. Out: [`Node`]s with aliases and merge keys already resolved. Scalars keep the
//! text they were written with (`1.10` stays `1.10`, `0755` stays `0755`): what they mean is decided by the key that
//! reads them. Never here: any knowledge of compose.

use std::{collections::BTreeSet, fmt, rc::Rc};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{
    Location, Spanned,
    options::{DuplicateKeyPolicy, NonFiniteFloatPolicy},
};

use crate::problem::{Problems, code, inert};

/// Bytes of a compose file at most.
pub const MAX_FILE: usize = 256 << 10;
/// Maps and lists inside one another at most.
const MAX_DEPTH: usize = 24;
/// Values written in a file, and values repeated by aliases, at most.
const MAX_NODES: usize = 40_000;
/// Aliases at most, and bytes that anchors may hold: together they bound what an alias bomb can unfold to.
const MAX_ALIASES: usize = 500;
const MAX_ANCHOR_BYTES: usize = 64 << 10;
/// Characters of a key at most.
const MAX_KEY: usize = 256;

/// Where a node hangs in the tree.
#[derive(Debug, Clone)]
pub(crate) enum Path {
    Root,
    Key(Rc<Path>, String),
    Item(Rc<Path>, usize),
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(parent, key) => {
                if !matches!(**parent, Self::Root) {
                    write!(f, "{parent}.")?;
                }
                // Control characters of a key must not reach the terminal of whoever pushed it.
                let short: String = key.chars().take(64).collect();
                f.write_str(&inert(&short))
            }
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub value: Value,
    pub line: u64,
    pub column: u64,
    pub path: Rc<Path>,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    /// Any scalar, as written (quotes and escapes resolved).
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value; `key` has the key's own place and the value's path.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub name: String,
    pub key: Node,
    pub node: Node,
}

impl Node {
    /// The word for what it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Scalar(_) => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    /// The entry of a map with this key.
    pub fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.name == name).map(|e| &e.node),
            _ => None,
        }
    }
}

/// What the YAML reader sees before places and paths are settled.
enum Raw {
    Null,
    Text(String),
    /// Read as a number or boolean: the text is taken from the source, so that its spelling survives.
    Typed(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Raw, E> {
        Ok(Raw::Typed(v.to_string()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Raw, E> {
        Ok(Raw::Typed(v.to_string()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Raw, E> {
        Ok(Raw::Typed(v.to_string()))
    }

    fn visit_i128<E>(self, v: i128) -> Result<Raw, E> {
        Ok(Raw::Typed(v.to_string()))
    }

    fn visit_u128<E>(self, v: u128) -> Result<Raw, E> {
        Ok(Raw::Typed(v.to_string()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Raw, E> {
        Ok(Raw::Typed(v.to_string()))
    }

    fn visit_str<E>(self, v: &str) -> Result<Raw, E> {
        // Plain scalars that overflow a float arrive under these names; the source has what was written.
        Ok(if matches!(v, ".inf" | "-.inf" | ".nan") {
            Raw::Typed(v.to_owned())
        } else {
            Raw::Text(v.to_owned())
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

/// Reads the text. `None`: the problems say why.
pub(crate) fn read(text: &str, problems: &mut Problems) -> Option<Node> {
    if text.len() > MAX_FILE {
        problems.whole(
            code::LIMIT,
            format!("is {} bytes long; at most {MAX_FILE} are read", text.len()),
            "split the project over several fleets, or move data into the images",
        );
        return None;
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_events: 4 * MAX_NODES,
            max_nodes: MAX_NODES,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
            max_recorded_anchor_bytes: MAX_ANCHOR_BYTES,
            max_recorded_anchor_events: MAX_NODES,
            max_merge_keys: MAX_ALIASES,
            max_total_scalar_bytes: 2 * MAX_FILE,
            max_documents: 2,
            // Many services may share one anchor; the bounds above hold an alias bomb.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_NODES,
            max_replay_stack_depth: 16,
        },
        // Duplicates are reported below, all of them and with their path.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // `no` and `on` stay words, as in YAML 1.2 and in compose.
        strict_booleans: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
        // `!reset` and `!override` of compose would otherwise be passed over.
        reject_unsupported_tags: true,
    };
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options) {
        Ok(raw) => Some(settle(raw, Rc::new(Path::Root), None, text, problems)),
        Err(error) => {
            let place = error.location().map_or((0, 0), |l| (l.line(), l.column()));
            let whole = error.without_snippet().to_string();
            // The place is said once, in front.
            let said = whole.split_once(" at line ").map_or(whole.as_str(), |(before, _)| before);
            let (code, message, fix) = if said.contains("budget") || said.contains("limit exceeded") {
                (
                    code::LIMIT,
                    format!(
                        "is more deeply nested or more repetitive than a compose file may be (at most {MAX_DEPTH} levels, \
                         {MAX_NODES} values, {MAX_ALIASES} aliases)"
                    ),
                    "write it with fewer levels, anchors and aliases",
                )
            } else if said.contains("multiple YAML documents") {
                (
                    code::YAML,
                    "holds more than one YAML document".to_owned(),
                    "keep one document in the file: remove the `---` and what follows",
                )
            } else {
                (
                    code::YAML,
                    format!("is not YAML: {said}"),
                    "mend it there: indentation by spaces, `key: value`, quotes and brackets closed",
                )
            };
            let problem = problems.make(place, String::new(), code, message, fix);
            problems.push(problem);
            None
        }
    }
}

/// Gives a node its place and path. Maps, lists and empty values take the place of the key above them, which is
/// where a person looks.
fn settle(
    raw: Spanned<Raw>,
    path: Rc<Path>,
    key_place: Option<(u64, u64)>,
    text: &str,
    problems: &mut Problems,
) -> Node {
    let own = (raw.referenced.line(), raw.referenced.column());
    let (value, (line, column)) = match raw.value {
        Raw::Null => (Value::Null, key_place.unwrap_or(own)),
        Raw::Text(scalar) => (Value::Scalar(scalar), own),
        Raw::Typed(read) => (Value::Scalar(source(text, &raw.defined).map_or(read, str::to_owned)), own),
        Raw::List(items) => {
            let items = items
                .into_iter()
                .enumerate()
                .map(|(i, item)| settle(item, Rc::new(Path::Item(path.clone(), i)), None, text, problems))
                .collect();
            (Value::List(items), key_place.unwrap_or(own))
        }
        Raw::Map(entries) => (settle_map(entries, &path, text, problems), key_place.unwrap_or(own)),
    };
    Node { value, line, column, path }
}

fn settle_map(
    entries: Vec<(Spanned<String>, Spanned<Raw>)>,
    path: &Rc<Path>,
    text: &str,
    problems: &mut Problems,
) -> Value {
    let mut seen = BTreeSet::new();
    let mut map = Vec::with_capacity(entries.len());
    for (name, value) in entries {
        let place = (name.referenced.line(), name.referenced.column());
        let child = Rc::new(Path::Key(path.clone(), name.value.chars().take(MAX_KEY).collect()));
        let key = Node { value: Value::Null, line: place.0, column: place.1, path: child.clone() };
        if name.value.chars().count() > MAX_KEY {
            problems.at(
                &key,
                code::LIMIT,
                format!("the key is longer than {MAX_KEY} characters"),
                "shorten it",
            );
        } else if !seen.insert(name.value.clone()) {
            problems.at(
                &key,
                code::DUPLICATE_KEY,
                "stands twice in the same map",
                "keep one of the two: YAML says that only one counts, and readers disagree which",
            );
        }
        let node = settle(value, child, Some(place), text, problems);
        map.push(Entry { name: name.value, key, node });
    }
    Value::Map(map)
}

/// What stands in the text at a location.
fn source<'t>(text: &'t str, location: &Location) -> Option<&'t str> {
    let span = location.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let len = usize::try_from(span.byte_len()?).ok()?;
    text.get(start..start.checked_add(len)?).map(str::trim).filter(|s| !s.is_empty())
}
