//! Sequences that refuse to grow past a limit while they are read.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// Reads a sequence of at most `LIMIT` elements; for `#[serde(deserialize_with)]`.
///
/// Memory grows with what was read, never with a length the sender claims.
pub fn sequence<'de, D, T, const LIMIT: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(SequenceVisitor::<T, LIMIT>(PhantomData))
}

/// As [`sequence`], and `null` reads as no elements: clients send both for "none".
pub fn optional_sequence<'de, D, T, const LIMIT: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_option(SequenceVisitor::<T, LIMIT>(PhantomData))
}

/// Reads the elements of `access`, refusing the one after `limit`.
pub fn read_elements<'de, A, T>(mut access: A, limit: usize) -> Result<Vec<T>, A::Error>
where
    A: SeqAccess<'de>,
    T: Deserialize<'de>,
{
    let mut elements = Vec::new();
    while let Some(element) = access.next_element()? {
        if elements.len() == limit {
            return Err(A::Error::custom(format_args!(
                "more than {limit} elements, the most this array may have"
            )));
        }
        elements.push(element);
    }
    Ok(elements)
}

struct SequenceVisitor<T, const LIMIT: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const LIMIT: usize> Visitor<'de> for SequenceVisitor<T, LIMIT> {
    type Value = Vec<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an array of at most {LIMIT} elements")
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<Self::Value, A::Error> {
        read_elements(access, LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Three {
        #[serde(default, deserialize_with = "super::optional_sequence::<_, _, 3>")]
        numbers: Vec<u32>,
    }

    #[test]
    fn a_sequence_may_reach_its_limit_but_not_pass_it() {
        let full: Three = serde_json::from_str(r#"{"numbers": [1, 2, 3]}"#).unwrap();
        assert_eq!(full.numbers, [1, 2, 3]);
        let error = serde_json::from_str::<Three>(r#"{"numbers": [1, 2, 3, 4]}"#)
            .err()
            .unwrap();
        assert!(error.to_string().starts_with("more than 3 elements"), "{error}");
    }

    #[test]
    fn null_and_absent_read_as_no_elements() {
        assert!(
            serde_json::from_str::<Three>(r#"{"numbers": null}"#)
                .unwrap()
                .numbers
                .is_empty()
        );
        assert!(serde_json::from_str::<Three>("{}").unwrap().numbers.is_empty());
        assert!(serde_json::from_str::<Three>(r#"{"numbers": "x"}"#).is_err());
    }
}
