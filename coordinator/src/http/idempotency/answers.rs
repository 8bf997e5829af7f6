//! Which answers there are, by key: those that are made, and those that ended of late.
//!
//! Nothing waits here; time is an argument.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::key::IdempotencyKey;
use super::recording::{MAX_BYTES, Reader, Recording};

/// Most keys that are remembered.
const MAX_KEYS: usize = 1024;
/// How long an answer is kept once it has ended.
const KEPT_FOR: Duration = Duration::from_secs(300);

struct Entry {
    /// Tells requests apart.
    fingerprint: u128,
    recording: Arc<Recording>,
    ended: Option<Instant>,
}

/// What there is for a request.
pub(super) enum Found {
    /// Its answer, as far as it has been made.
    Answer { reader: Reader, ended: bool },
    /// The key is another request's.
    Other,
    /// Nothing: it is the first, and its answer is to be made.
    New {
        recording: Arc<Recording>,
        reader: Reader,
    },
    /// Nothing, and there is no room for its answer to be kept.
    NoRoom,
}

/// All answers.
#[derive(Default)]
pub(in crate::http) struct Answers {
    entries: Mutex<BTreeMap<IdempotencyKey, Entry>>,
    bytes: Arc<AtomicUsize>,
}

impl Answers {
    /// What there is for a request of this key and fingerprint.
    pub(super) fn find(&self, key: &IdempotencyKey, fingerprint: u128, now: Instant) -> Found {
        let mut entries = self.entries();
        entries.retain(|_, entry| entry.ended.is_none_or(|ended| now - ended < KEPT_FOR));
        match entries.get(key) {
            Some(entry) if entry.fingerprint != fingerprint => return Found::Other,
            Some(entry) if entry.recording.is_whole() => {
                return Found::Answer {
                    reader: entry.recording.reader(),
                    ended: entry.ended.is_some(),
                };
            }
            // Its beginning has gone: it is made anew.
            Some(_) | None => {}
        }
        while entries.len() >= MAX_KEYS && !entries.contains_key(key) {
            if !forget_oldest(&mut entries) {
                return Found::NoRoom;
            }
        }
        let recording = Recording::new(Arc::clone(&self.bytes));
        let reader = recording.reader();
        let entry = Entry {
            fingerprint,
            recording: Arc::clone(&recording),
            ended: None,
        };
        entries.insert(key.clone(), entry);
        Found::New { recording, reader }
    }

    /// An answer has ended; one that is not good is not kept.
    pub(super) fn ended(&self, key: &IdempotencyKey, recording: &Arc<Recording>, good: bool, now: Instant) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(key) else { return };
        if !Arc::ptr_eq(&entry.recording, recording) {
            return;
        }
        entry.ended = Some(now);
        if !good || !recording.is_whole() {
            entries.remove(key);
        }
    }

    /// Forgets answers that have ended until there is room for so many bytes more, as far as that goes.
    pub(super) fn make_room(&self, bytes: usize) {
        let is_full = || self.bytes.load(Ordering::Relaxed) + bytes > MAX_BYTES;
        while is_full() && forget_oldest(&mut self.entries()) {}
    }

    /// How many keys are remembered, and bytes of answers.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.entries().len(), self.bytes.load(Ordering::Relaxed))
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<IdempotencyKey, Entry>> {
        // Nothing panics while the lock is held.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the answer that ended first, if one has.
fn forget_oldest(entries: &mut BTreeMap<IdempotencyKey, Entry>) -> bool {
    let ended = entries
        .iter()
        .filter_map(|(key, entry)| Some((entry.ended?, key)));
    match ended.min().map(|(_, key)| key.clone()) {
        Some(oldest) => entries.remove(&oldest).is_some(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use axum::http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::http::idempotency::key::HEADER;

    fn key(text: &str) -> IdempotencyKey {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_str(text).unwrap());
        IdempotencyKey::of(&headers).unwrap().unwrap()
    }

    fn begin(answers: &Answers, text: &str, now: Instant) -> Arc<Recording> {
        match answers.find(&key(text), 1, now) {
            Found::New { recording, .. } => recording,
            Found::Answer { .. } | Found::Other | Found::NoRoom => panic!("{text} is not new"),
        }
    }

    fn is_there(answers: &Answers, text: &str, now: Instant) -> bool {
        matches!(answers.find(&key(text), 1, now), Found::Answer { .. })
    }

    #[test]
    fn answers_are_found_while_they_are_made_and_a_while_after() {
        let (answers, now) = (Answers::default(), Instant::now());
        let recording = begin(&answers, "a", now);
        let found = answers.find(&key("a"), 1, now);
        assert!(matches!(found, Found::Answer { ended: false, .. }));
        assert!(matches!(answers.find(&key("a"), 2, now), Found::Other));
        answers.ended(&key("a"), &recording, true, now);
        let late = now + KEPT_FOR;
        let found = answers.find(&key("a"), 1, late - Duration::from_millis(1));
        assert!(matches!(found, Found::Answer { ended: true, .. }));
        assert!(matches!(answers.find(&key("a"), 2, late), Found::New { .. }));
    }

    #[test]
    fn an_answer_that_is_not_good_frees_its_key() {
        let (answers, now) = (Answers::default(), Instant::now());
        let recording = begin(&answers, "a", now);
        answers.ended(&key("a"), &recording, false, now);
        let newer = begin(&answers, "a", now);
        // The older one has nothing more to say.
        answers.ended(&key("a"), &recording, false, now);
        assert!(is_there(&answers, "a", now));
        answers.ended(&key("a"), &newer, true, now);
        assert!(is_there(&answers, "a", now));
    }

    #[test]
    fn the_oldest_that_has_ended_makes_room() {
        let (answers, now) = (Answers::default(), Instant::now());
        let made: Vec<_> = (0..MAX_KEYS)
            .map(|number| begin(&answers, &number.to_string(), now))
            .collect();
        assert!(matches!(answers.find(&key("x"), 1, now), Found::NoRoom));
        for (number, after_ms) in [(7, 2), (3, 1)] {
            let ended = now + Duration::from_millis(after_ms);
            answers.ended(&key(&number.to_string()), &made[number], true, ended);
        }
        begin(&answers, "x", now);
        assert!(is_there(&answers, "7", now));
        begin(&answers, "3", now);
        assert!(matches!(answers.find(&key("y"), 1, now), Found::NoRoom));
        assert_eq!(answers.size().0, MAX_KEYS);
    }

    #[tokio::test]
    async fn too_many_bytes_push_out_the_oldest() {
        let (answers, now) = (Answers::default(), Instant::now());
        let frame = Bytes::from(vec![0; 400 << 10]);
        let count = MAX_BYTES / frame.len() + 1;
        for number in 0..count {
            let recording = begin(&answers, &number.to_string(), now);
            answers.make_room(frame.len());
            recording.push(frame.clone()).await;
            let ended = now + Duration::from_millis(number as u64);
            answers.ended(&key(&number.to_string()), &recording, true, ended);
        }
        let (keys, bytes) = answers.size();
        assert_eq!(keys, count - 1);
        assert!(bytes <= MAX_BYTES);
        assert!(!is_there(&answers, "0", now) && is_there(&answers, "1", now));
    }
}
