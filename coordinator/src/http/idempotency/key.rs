//! The key of a request that may come again, and what follows from it.
//!
//! Pure: every coordinator makes the same of a key. There are no tenants yet: the key alone counts, so clients choose one
//! that nobody else does.

use std::hash::Hasher;

use axum::http::HeaderMap;
use siphasher::sip::SipHasher13;
use tramontane_model::ids::RequestId;

use crate::http::error::ApiError;

/// The header.
pub(in crate::http) const HEADER: &str = "Idempotency-Key";
/// Longest key, in bytes.
pub(in crate::http) const MAX_KEY_BYTES: usize = 255;
/// Known to all, as what follows from a key is no secret.
const COMMON_KEY: [u8; 16] = *b"idempotency keys";

/// What follows from a key, kept apart.
const SEED: u8 = 0;
const ID_HIGH: u8 = 1;
const ID_LOW: u8 = 2;

/// A key: visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::http) struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The key of a request, if it has one.
    pub(in crate::http) fn of(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let mut values = headers.get_all(HEADER).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(ApiError::invalid(
                HEADER,
                "is there twice, at most one is allowed",
            ));
        }
        let bytes = value.as_bytes();
        if bytes.is_empty() || bytes.len() > MAX_KEY_BYTES {
            let problem = format!(
                "has {} bytes, it must have from 1 to {MAX_KEY_BYTES}",
                bytes.len()
            );
            return Err(ApiError::invalid(HEADER, problem));
        }
        if !bytes.iter().all(u8::is_ascii_graphic) {
            let problem = "must be visible ASCII characters without spaces, as a UUID is";
            return Err(ApiError::invalid(HEADER, problem));
        }
        Ok(value.to_str().ok().map(|text| Self(text.to_owned())))
    }

    /// The seed of a request that names none.
    pub(in crate::http) fn seed(&self) -> u64 {
        self.hash(SEED, 0)
    }

    /// The id that choice `index` of the answer shows.
    pub(in crate::http) fn id(&self, index: u32) -> RequestId {
        let halves = [ID_HIGH, ID_LOW].map(|part| u128::from(self.hash(part, index)));
        RequestId(halves[0] << 64 | halves[1])
    }

    fn hash(&self, part: u8, index: u32) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&COMMON_KEY);
        hasher.write(&[part]);
        hasher.write(&index.to_le_bytes());
        hasher.write(self.0.as_bytes());
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn read(values: &[&[u8]]) -> Result<Option<IdempotencyKey>, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, HeaderValue::from_bytes(value).unwrap());
        }
        IdempotencyKey::of(&headers).map_err(|error| error.message)
    }

    #[test]
    fn keys_are_bounded_and_of_visible_characters() {
        assert_eq!(read(&[]), Ok(None));
        let longest = [b'~'; MAX_KEY_BYTES];
        for good in [&b"7"[..], b"\"8e03978e-40d5-43dd-bc93-6894a57f9324\"", &longest] {
            let text = String::from_utf8(good.to_vec()).unwrap();
            assert_eq!(read(&[good]), Ok(Some(IdempotencyKey(text))));
        }
        for (bad, part) in [
            (&[&b""[..]][..], "has 0 bytes, it must have from 1 to 255"),
            (&[&[b'a'; MAX_KEY_BYTES + 1]], "has 256 bytes"),
            (&[b"a b"], "visible ASCII"),
            (&["ключ".as_bytes()], "visible ASCII"),
            (&[b"a", b"a"], "is there twice"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(
                error.starts_with("Idempotency-Key: ") && error.contains(part),
                "{error}"
            );
        }
    }

    #[test]
    fn what_follows_from_a_key_is_the_same_everywhere_and_differs_between_keys() {
        let key = |text: &str| IdempotencyKey(text.to_owned());
        // Other coordinators, of this version and of others, make the same of it.
        assert_eq!(key("a").seed(), 6_744_011_447_519_394_439);
        assert_ne!(key("a").seed(), key("b").seed());
        assert_ne!(key("a").id(0), key("a").id(1));
        assert_ne!(key("a").id(0), key("b").id(0));
        assert_eq!(key("a").id(3), key("a").id(3));
    }
}
