//! Strict JSON: bounded depth, no duplicate keys, integers only, nothing after the end. `serde_json` alone takes the
//! last of two equal keys in a map, so two readers could see two documents in the same signed bytes; and readers
//! that hold numbers as doubles would see other integers beyond 2^53 than we do.
//!
//! In: bytes. Out: a typed value, or why not. Time and memory are linear in the input.

use std::{borrow::Cow, cell::RefCell, collections::HashSet, fmt};

use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::documents::MAX_INTEGER;

/// Depth of an envelope.
pub const ENVELOPE_DEPTH: usize = 4;
/// Depth of a payload.
pub const PAYLOAD_DEPTH: usize = 32;

/// The most characters of foreign text an error repeats.
const MAX_QUOTED: usize = 120;

/// Why bytes are not acceptable JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Two equal keys in one object.
    #[error("key {0:?} stands twice in one object")]
    DuplicateKey(String),
    /// Nested deeper than allowed.
    #[error("nested deeper than {0}")]
    TooDeep(usize),
    /// An integer beyond ±(2^53−1), or a number that is not an integer.
    #[error("{0} is not an integer within 2^53-1")]
    Number(String),
    /// Anything else: not JSON, an unknown field, a wrong type.
    #[error("{0}")]
    Syntax(String),
}

/// Parses `bytes` as a `T`, strictly.
///
/// # Errors
/// See [`JsonError`].
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8], max_depth: usize) -> Result<T, JsonError> {
    check(bytes, max_depth)?;
    typed(bytes)
}

/// Checks all that does not depend on the type wanted: depth, keys, numbers, trailing bytes.
///
/// # Errors
/// See [`JsonError`].
pub fn check(bytes: &[u8], max_depth: usize) -> Result<(), JsonError> {
    let found = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let walked = Strict { left: max_depth, max_depth, found: &found }
        .deserialize(&mut reader)
        .and_then(|()| reader.end());
    // A finding of ours passes through serde's error type as text; the typed one waits beside it.
    walked.map_err(|e| found.into_inner().unwrap_or_else(|| syntax(&e)))
}

/// Parses bytes that [`check`] has accepted.
pub(crate) fn typed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    serde_json::from_slice(bytes).map_err(|e| syntax(&e))
}

fn syntax(error: &serde_json::Error) -> JsonError {
    JsonError::Syntax(shortened(&error.to_string()))
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= MAX_QUOTED {
        return text.to_owned();
    }
    text.chars().take(MAX_QUOTED).chain("…".chars()).collect()
}

/// Walks one value and keeps nothing of it but the keys of the objects it is inside of.
#[derive(Clone, Copy)]
struct Strict<'f> {
    left: usize,
    max_depth: usize,
    found: &'f RefCell<Option<JsonError>>,
}

impl Strict<'_> {
    fn refuse<E: de::Error>(self, why: JsonError) -> E {
        let error = E::custom(&why);
        self.found.replace(Some(why));
        error
    }

    fn inner<E: de::Error>(self) -> Result<Self, E> {
        match self.left.checked_sub(1) {
            Some(left) => Ok(Self { left, ..self }),
            None => Err(self.refuse(JsonError::TooDeep(self.max_depth))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: de::Error>(self, n: u64) -> Result<(), E> {
        if n <= MAX_INTEGER { Ok(()) } else { Err(self.refuse(JsonError::Number(n.to_string()))) }
    }

    fn visit_i64<E: de::Error>(self, n: i64) -> Result<(), E> {
        if n.unsigned_abs() <= MAX_INTEGER {
            Ok(())
        } else {
            Err(self.refuse(JsonError::Number(n.to_string())))
        }
    }

    fn visit_f64<E: de::Error>(self, n: f64) -> Result<(), E> {
        Err(self.refuse(JsonError::Number(format!("{n:e}"))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while items.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        let mut seen = HashSet::new();
        while let Some(key) = entries.next_key_seed(Key)? {
            if seen.contains(&key) {
                return Err(self.refuse(JsonError::DuplicateKey(shortened(&key))));
            }
            seen.insert(key);
            entries.next_value_seed(inner)?;
        }
        Ok(())
    }
}

/// Reads a key as the text it means (`"\u0061"` is `"a"`), borrowed where it can be.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strict(text: &str) -> Result<serde_json::Value, JsonError> {
        from_slice(text.as_bytes(), 4)
    }

    #[test]
    fn a_key_twice_is_refused_at_any_depth_and_in_any_spelling() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"x":{"a":1,"b":2,"a":3}}"#,
            r#"[[{"a":1,"a":2}]]"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":null,"a":null}"#,
        ] {
            assert_eq!(strict(text), Err(JsonError::DuplicateKey("a".to_owned())), "{text}");
        }
        assert!(
            strict(r#"{"a":{"a":{"a":1}},"b":[{"a":1},{"a":2}]}"#).is_ok(),
            "equal keys in other objects"
        );
    }

    #[test]
    fn a_map_in_a_typed_document_is_searched_for_doubles_too() {
        type Map = std::collections::BTreeMap<String, u64>;
        assert!(matches!(
            from_slice::<Map>(br#"{"counter":1,"counter":2}"#, 4),
            Err(JsonError::DuplicateKey(_))
        ));
    }

    #[test]
    fn depth_is_bounded_to_the_letter() {
        assert!(strict("[[[[1]]]]").is_ok());
        assert_eq!(strict("[[[[[1]]]]]"), Err(JsonError::TooDeep(4)));
        assert_eq!(strict(&"[".repeat(100_000)), Err(JsonError::TooDeep(4)));
        assert_eq!(strict(&r#"{"a":"#.repeat(100_000)), Err(JsonError::TooDeep(4)));
    }

    #[test]
    fn numbers_are_integers_every_reader_holds_exactly() {
        for good in ["0", "9007199254740991", "-9007199254740991"] {
            assert!(strict(good).is_ok(), "{good}");
        }
        for bad in [
            "9007199254740992",
            "-9007199254740992",
            "1.0",
            "1e3",
            "-0",
            "18446744073709551616",
            "1e999",
            "0.5",
        ] {
            assert!(strict(bad).is_err(), "{bad}");
        }
        assert!(matches!(strict(r#"{"n":1.5}"#), Err(JsonError::Number(_))));
    }

    #[test]
    fn nothing_may_follow_or_precede_the_value() {
        for bad in ["", "{} {}", "{}x", "{}\0", "\u{feff}{}", "{} // end", "[1,]", "{'a':1}", "NaN", "{a:1}"]
        {
            assert!(matches!(strict(bad), Err(JsonError::Syntax(_))), "{bad:?}");
        }
        assert!(from_slice::<serde_json::Value>(b"\"\xff\"", 4).is_err(), "not UTF-8");
        assert!(from_slice::<serde_json::Value>(br#""\ud800""#, 4).is_err(), "half a surrogate pair");
        assert!(strict(" {} \n").is_ok());
    }

    #[test]
    fn an_error_repeats_little_of_what_was_sent() {
        let long = "k".repeat(100_000);
        let error = strict(&format!(r#"{{"{long}":1,"{long}":2}}"#)).unwrap_err();
        assert!(error.to_string().len() < 300);
    }

    #[test]
    fn a_wide_object_is_read_in_one_pass() {
        // A quadratic reader would need 10^11 comparisons here and never end.
        let text: String = (0..300_000).map(|n| format!("\"k{n}\":{n},")).collect();
        assert!(strict(&format!("{{{}}}", text.trim_end_matches(','))).is_ok());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_an_answer_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = from_slice::<serde_json::Value>(&bytes, PAYLOAD_DEPTH);
        }

        #[test]
        fn what_is_accepted_reads_the_same_to_a_plain_reader(text in "[\\[\\]{}\":,0-9a-b \\\\]{0,40}") {
            if let Ok(value) = strict(&text) {
                prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
            }
        }
    }
}
