//! Who waits for a place in the cache: the highest priority first, then the longest wait.
//!
//! No bound is kept here: what may come in is for the admission to say, and a preempted sequence is never refused.

use std::collections::BTreeMap;

use super::sequence::{Place, Request};

/// The waiting requests in the order in which they are served.
#[derive(Debug, Default)]
pub(super) struct Queue {
    requests: BTreeMap<Place, Request>,
    /// Sum of what they may come to.
    tokens: u64,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Prompts and outputs that the waiting requests may come to.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(super) fn get(&self, place: Place) -> Option<&Request> {
        self.requests.get(&place)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Place, &Request)> {
        self.requests.iter()
    }

    /// The next to be served.
    pub(super) fn first(&self) -> Option<&Request> {
        self.requests.first_key_value().map(|(_, request)| request)
    }

    pub(super) fn insert(&mut self, place: Place, request: Request) {
        self.tokens += request.most_tokens();
        self.requests.insert(place, request);
    }

    pub(super) fn remove(&mut self, place: Place) -> Option<Request> {
        let request = self.requests.remove(&place)?;
        self.tokens -= request.most_tokens();
        Some(request)
    }

    pub(super) fn pop_first(&mut self) -> Option<(Place, Request)> {
        let (place, request) = self.requests.pop_first()?;
        self.tokens -= request.most_tokens();
        Some((place, request))
    }
}
