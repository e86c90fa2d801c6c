//! JSON that another version of this agent wrote, read by what is known of it.
//!
//! A device goes back to an older agent, and that one reads the files of the newer one. The types of signed documents stand
//! in those files too, and refuse every field they do not know: right for what comes from outside, wrong here, where a new
//! field would cost the device its memory. So fields that a structure does not have are taken out before it sees them.
//! Never here: a signed document, which is kept as the bytes it came as.

use serde::{
    Deserializer,
    de::{
        self, DeserializeOwned, IntoDeserializer, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Error, Value};

/// As [`serde_json::from_slice`], and fields that are not known are passed over, at any depth.
///
/// # Errors
/// No JSON, or not a `T` for any other cause.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    T::deserialize(Known(serde_json::from_slice(bytes)?))
}

struct Known(Value);

impl IntoDeserializer<'_, Error> for Known {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Known {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Known));
                let made = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(made)
            }
            Value::Object(fields) => {
                let mut fields = MapDeserializer::new(fields.into_iter().map(|(name, of)| (name, Known(of))));
                let made = visitor.visit_map(&mut fields)?;
                fields.end()?;
                Ok(made)
            }
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Value::Object(fields) = &mut self.0 {
            fields.retain(|name, _| known.contains(&name.as_str()));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(fields) if fields.len() == 1 => {
                let fields = fields.into_iter().map(|(name, of)| (name, Known(of)));
                visitor.visit_enum(de::value::MapAccessDeserializer::new(MapDeserializer::new(fields)))
            }
            plain => plain.deserialize_enum(name, variants, visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        n: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        more: Option<Box<Inner>>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Plain,
        With(Inner),
        Fields { inner: Inner },
        Pair(u8, Inner),
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Id(String);

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct All {
        id: Id,
        pair: (i64, Inner),
        list: Vec<Inner>,
        by_name: BTreeMap<String, Kind>,
        floor: f64,
        none: Option<bool>,
        some: Option<Inner>,
    }

    fn all() -> All {
        let inner = |n| Inner { n, more: Some(Box::new(Inner { n: n + 1, more: None })) };
        let kinds = [
            ("a", Kind::Plain),
            ("b", Kind::With(inner(1))),
            ("c", Kind::Fields { inner: inner(2) }),
            ("d", Kind::Pair(3, inner(3))),
        ];
        All {
            id: Id("x".to_owned()),
            pair: (-4, inner(4)),
            list: vec![inner(5), inner(6)],
            by_name: kinds.into_iter().map(|(name, kind)| (name.to_owned(), kind)).collect(),
            floor: 0.5,
            none: None,
            some: Some(inner(7)),
        }
    }

    /// Puts an unknown field into every object that stands for a structure (they all have `n` or `id`).
    fn newer(value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(newer),
            Value::Object(fields) => {
                fields.values_mut().for_each(newer);
                if fields.contains_key("n") || fields.contains_key("id") {
                    fields.insert("later".to_owned(), serde_json::json!({"n": [1, null, {"deep": true}]}));
                }
            }
            _ => {}
        }
    }

    #[test]
    fn fields_of_a_newer_agent_are_passed_over_at_any_depth() {
        let mut value = serde_json::to_value(all()).unwrap();
        newer(&mut value);
        let bytes = serde_json::to_vec(&value).unwrap();
        assert!(serde_json::from_slice::<All>(&bytes).is_err(), "the types themselves refuse them");
        assert_eq!(from_slice::<All>(&bytes).unwrap(), all());
    }

    #[test]
    fn what_is_missing_or_of_another_kind_is_refused_as_ever() {
        for text in ["", "{", r#"{"n":"1"}"#, "{}", "[]", "3", r#"{"n":1.5}"#, r#"{"n":-1}"#] {
            assert!(from_slice::<Inner>(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(from_slice::<Kind>(br#""plain""#).unwrap(), Kind::Plain);
        for text in [r#""later""#, r#"{"later":{}}"#, r#"{"with":{"n":1},"plain":{}}"#, r#"{"with":1}"#] {
            assert!(from_slice::<Kind>(text.as_bytes()).is_err(), "{text}");
        }
    }
}
