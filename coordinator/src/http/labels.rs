//! `user` and `metadata`: labels that a client puts on its request. Bounded, and otherwise ignored: they change no
//! answer and stand in no log.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;

/// Longest user, in characters.
const MAX_USER: usize = 512;
/// Most pairs of metadata.
const MAX_PAIRS: usize = 16;
/// Longest key of metadata, in characters.
const MAX_KEY: usize = 64;
/// Longest value of metadata, in characters.
const MAX_VALUE: usize = 512;

/// Takes the labels and checks them.
pub(super) fn check(fields: &mut Fields<'_>) -> Result<(), ApiError> {
    if let Some(user) = fields.take::<String>("user")? {
        let length = user.chars().count();
        if length > MAX_USER {
            let problem = format!("has {length} characters, at most {MAX_USER} are taken");
            return Err(ApiError::invalid("user", problem));
        }
    }
    fields.take::<Metadata>("metadata")?;
    Ok(())
}

/// Bounded pairs, not kept.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor)
    }
}

struct PairsVisitor;

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Metadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of at most {MAX_PAIRS} pairs")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
        let mut pairs = 0;
        while let Some(key) = map.next_key::<String>()? {
            pairs += 1;
            if pairs > MAX_PAIRS {
                return Err(A::Error::custom(format_args!(
                    "more than {MAX_PAIRS} pairs, the most that are taken"
                )));
            }
            if key.chars().count() > MAX_KEY {
                return Err(A::Error::custom(format_args!(
                    "a key has more than {MAX_KEY} characters, the most that are taken"
                )));
            }
            let length = match map.next_value::<Value>()? {
                Value::String(text) => text.chars().count(),
                Value::Number(_) | Value::Bool(_) | Value::Null => 0,
                Value::Array(_) | Value::Object(_) => {
                    return Err(A::Error::custom(
                        "a value must be a string, a number or a boolean",
                    ));
                }
            };
            if length > MAX_VALUE {
                return Err(A::Error::custom(format_args!(
                    "a value has more than {MAX_VALUE} characters, the most that are taken"
                )));
            }
        }
        Ok(Metadata)
    }
}
