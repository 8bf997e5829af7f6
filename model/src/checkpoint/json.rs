//! JSON objects whose keys are free: read into a sorted map, with the keys that came twice.
//!
//! serde's own maps silently keep the last of two equal keys.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use super::error::MAX_FAULTS;

/// The key under which a safetensors header keeps free text.
const METADATA: &str = "__metadata__";

/// Longest name of a tensor: names end up in errors and logs.
const MAX_NAME_BYTES: usize = 256;

/// An object's members, except free text, and those of its keys that came twice (up to a bound).
#[derive(Debug)]
pub(super) struct Members<V> {
    pub(super) members: BTreeMap<String, V>,
    pub(super) twice: Vec<String>,
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Members<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor(PhantomData))
    }
}

struct MembersVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for MembersVisitor<V> {
    type Value = Members<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with tensor names as keys")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<V>, A::Error> {
        let mut read = Members {
            members: BTreeMap::new(),
            twice: Vec::new(),
        };
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value::<Option<BTreeMap<String, String>>>()?;
                continue;
            }
            if name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
                let shown: String = name.chars().take(80).collect();
                let problem = format!(
                    "the name {shown:?} is not one of a tensor: use at most {MAX_NAME_BYTES} printable bytes"
                );
                return Err(A::Error::custom(problem));
            }
            let value = map
                .next_value::<V>()
                .map_err(|error| A::Error::custom(format!("tensor {name}: {error}")))?;
            if read.members.contains_key(&name) && read.twice.len() < MAX_FAULTS {
                read.twice.push(name.clone());
            }
            read.members.insert(name, value);
        }
        Ok(read)
    }
}
