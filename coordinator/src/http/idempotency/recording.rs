//! An answer that is made once and read by all who ask for it, each from its start and in their own time.
//!
//! What has been made waits in memory up to a limit; beyond it the beginning goes as soon as every reader has it, and
//! the answer is made no faster than the slowest of them reads (BQ-1). One whose beginning has gone takes no new reader.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::response::Parts;
use axum::response::Response;
use futures_util::stream;
use tokio::sync::watch;

/// Most bytes of one answer that are kept.
const MAX_ANSWER_BYTES: usize = 512 << 10;
/// The same while all answers together have more than [`MAX_BYTES`].
const MIN_ANSWER_BYTES: usize = 32 << 10;
/// Bytes of all answers beyond which those that are made are kept no longer than they need.
pub(super) const MAX_BYTES: usize = 64 << 20;
/// An answer that nobody has read for so long is given up.
pub(super) const UNREAD_GRACE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct State {
    head: Option<Parts>,
    /// Frames that have gone.
    first: usize,
    frames: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
    /// How many frames each reader has.
    readers: BTreeMap<u64, usize>,
    readers_named: u64,
}

/// An answer.
pub(super) struct Recording {
    state: Mutex<State>,
    /// Told of every change.
    changes: watch::Sender<()>,
    /// Bytes of all answers.
    total: Arc<AtomicUsize>,
}

impl Recording {
    /// One of which nothing is known yet; `total` counts the bytes of all.
    pub(super) fn new(total: Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changes: watch::Sender::new(()),
            total,
        })
    }

    /// Whether a new reader gets all of it.
    pub(super) fn is_whole(&self) -> bool {
        self.state().first == 0
    }

    /// Bytes that are kept of it.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// One more reader, from the start.
    pub(super) fn reader(self: &Arc<Self>) -> Reader {
        let mut state = self.state();
        let name = state.readers_named;
        state.readers_named += 1;
        state.readers.insert(name, 0);
        drop(state);
        self.changes.send_replace(());
        Reader {
            recording: Arc::clone(self),
            name,
        }
    }

    /// The answer's status and headers.
    pub(super) fn begin(&self, head: Parts) {
        self.state().head = Some(head);
        self.changes.send_replace(());
    }

    /// More of the answer; waits while there is no room for it.
    pub(super) async fn push(&self, frame: Bytes) {
        let mut changes = self.changes.subscribe();
        self.add(frame);
        while !self.trim() {
            // The sender lives as long as this.
            let _ = changes.changed().await;
        }
    }

    /// Whether it is known how the answer begins, or that there is none.
    fn has_begun(&self) -> bool {
        let state = self.state();
        state.head.is_some() || state.ended
    }

    /// Nothing more comes.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.changes.send_replace(());
    }

    /// Resolves once nobody has read it for [`UNREAD_GRACE`].
    pub(super) async fn unread(&self) {
        let mut changes = self.changes.subscribe();
        loop {
            let is_read = || !self.state().readers.is_empty();
            let read_again = async {
                while !is_read() {
                    let _ = changes.changed().await;
                }
            };
            if tokio::time::timeout(UNREAD_GRACE, read_again).await.is_err() {
                return;
            }
            while is_read() {
                let _ = changes.changed().await;
            }
        }
    }

    fn add(&self, frame: Bytes) {
        self.total.fetch_add(frame.len(), Ordering::Relaxed);
        let mut state = self.state();
        state.bytes += frame.len();
        state.frames.push_back(frame);
        drop(state);
        self.changes.send_replace(());
    }

    /// Lets go of what every reader has, as far as there is too much; whether there is room now.
    fn trim(&self) -> bool {
        let limit = match self.total.load(Ordering::Relaxed) > MAX_BYTES {
            true => MIN_ANSWER_BYTES,
            false => MAX_ANSWER_BYTES,
        };
        let mut state = self.state();
        let read = state.readers.values().copied().min().unwrap_or(state.first);
        while state.bytes > limit && state.first < read {
            let Some(frame) = state.frames.pop_front() else {
                break;
            };
            state.first += 1;
            state.bytes -= frame.len();
            self.total.fetch_sub(frame.len(), Ordering::Relaxed);
        }
        state.bytes <= limit
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let bytes = self.state().bytes;
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Reads an answer.
pub(super) struct Reader {
    recording: Arc<Recording>,
    name: u64,
}

impl Reader {
    /// The answer, as it is made; nothing if it was given up before it began.
    pub(super) async fn response(self) -> Option<Response> {
        let mut changes = self.recording.changes.subscribe();
        while !self.recording.has_begun() {
            let _ = changes.changed().await;
        }
        let head = self.recording.state().head.clone();
        let frames = stream::unfold((self, changes), |(reader, changes)| reader.next(changes));
        Some(Response::from_parts(head?, Body::from_stream(frames)))
    }

    async fn next(
        self,
        mut changes: watch::Receiver<()>,
    ) -> Option<(Result<Bytes, Infallible>, (Self, watch::Receiver<()>))> {
        loop {
            if let Some(frame) = self.take()? {
                self.recording.changes.send_replace(());
                return Some((Ok(frame), (self, changes)));
            }
            let _ = changes.changed().await;
        }
    }

    /// The next frame, if it is there; nothing at all after the last.
    #[expect(clippy::option_option, reason = "the end, and what is not there yet")]
    fn take(&self) -> Option<Option<Bytes>> {
        let mut state = self.recording.state();
        let at = state.readers.get(&self.name).copied()?;
        let frame = at
            .checked_sub(state.first)
            .and_then(|index| state.frames.get(index).cloned());
        if frame.is_some() {
            state.readers.insert(self.name, at + 1);
        } else if state.ended {
            return None;
        }
        Some(frame)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.recording.state().readers.remove(&self.name);
        self.recording.changes.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use futures_util::FutureExt;
    use futures_util::StreamExt;

    use super::*;

    fn recording() -> (Arc<Recording>, Arc<AtomicUsize>) {
        let total = Arc::default();
        (Recording::new(Arc::clone(&total)), total)
    }

    fn head() -> Parts {
        Response::new(()).into_parts().0
    }

    #[tokio::test]
    async fn every_reader_gets_all_of_it_whenever_it_comes() {
        let (recording, total) = recording();
        let early = recording.reader();
        recording.begin(head());
        recording.push(Bytes::from_static(b"one ")).await;
        let later = recording.reader();
        recording.push(Bytes::from_static(b"two")).await;
        recording.end();
        for reader in [early, later, recording.reader()] {
            let body = reader.response().await.unwrap().into_body();
            assert_eq!(to_bytes(body, 100).await.unwrap(), "one two");
        }
        assert_eq!((recording.bytes(), total.load(Ordering::Relaxed)), (7, 7));
        drop(recording);
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_long_answer_waits_for_its_slowest_reader_and_takes_no_other() {
        let (recording, _) = recording();
        let reader = recording.reader();
        recording.begin(head());
        let frame = Bytes::from(vec![7; MAX_ANSWER_BYTES]);
        recording.push(frame.clone()).await;
        assert!(recording.is_whole());
        let mut second = Box::pin(recording.push(frame.clone()));
        assert!(
            second.as_mut().now_or_never().is_none(),
            "nobody has read the first"
        );
        let mut body = reader.response().await.unwrap().into_body().into_data_stream();
        assert_eq!(body.next().await.unwrap().unwrap(), frame);
        second.await;
        assert!(!recording.is_whole());
        assert_eq!(recording.bytes(), MAX_ANSWER_BYTES);
        recording.end();
        assert_eq!(body.next().await.unwrap().unwrap(), frame);
        assert!(body.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_given_up_a_while_after_its_last_reader_has_left() {
        let (recording, _) = recording();
        let reader = recording.reader();
        let mut unread = Box::pin(recording.unread());
        let brief = UNREAD_GRACE - Duration::from_millis(1);
        assert!(tokio::time::timeout(2 * UNREAD_GRACE, &mut unread).await.is_err());
        drop(reader);
        assert!(tokio::time::timeout(brief, &mut unread).await.is_err());
        let again = recording.reader();
        assert!(tokio::time::timeout(2 * UNREAD_GRACE, &mut unread).await.is_err());
        drop(again);
        assert!(tokio::time::timeout(brief, &mut unread).await.is_err());
        assert!(
            tokio::time::timeout(Duration::from_millis(2), &mut unread)
                .await
                .is_ok()
        );
    }
}
