//! A network that loses, repeats, delays, reorders and splits.

use std::collections::{BTreeMap, BTreeSet};

use super::Rng;
use crate::raft::node::Outbound;

/// How bad it is, in percent of messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) lost: u64,
    pub(crate) repeated: u64,
    /// Much later than their successors.
    pub(crate) late: u64,
}

impl Weather {
    pub(crate) const FAIR: Self = Self {
        lost: 0,
        repeated: 0,
        late: 0,
    };
    pub(crate) const FOUL: Self = Self {
        lost: 10,
        repeated: 10,
        late: 10,
    };
}

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) is_snapshot: bool,
    pub(crate) bytes: Vec<u8>,
}

/// Messages by the step at which they arrive.
pub(crate) struct Network {
    pub(crate) weather: Weather,
    on_the_way: BTreeMap<(u64, u64), Letter>,
    sent: u64,
    /// Ordered pairs between which nothing gets through.
    cut: BTreeSet<(u64, u64)>,
}

impl Network {
    pub(crate) fn new(weather: Weather) -> Self {
        Self {
            weather,
            on_the_way: BTreeMap::new(),
            sent: 0,
            cut: BTreeSet::new(),
        }
    }

    /// Lets nothing through between `group` and the rest of `members`.
    pub(crate) fn split(&mut self, group: &[u64], members: &[u64]) {
        for inside in group {
            for outside in members.iter().filter(|id| !group.contains(id)) {
                self.cut.insert((*inside, *outside));
                self.cut.insert((*outside, *inside));
            }
        }
    }

    /// Lets nothing through in one direction only.
    pub(crate) fn mute(&mut self, from: u64, to: u64) {
        self.cut.insert((from, to));
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(crate) fn send(&mut self, now: u64, from: u64, message: Outbound, rng: &mut Rng) {
        let letter = Letter {
            from,
            to: message.to.0,
            is_snapshot: message.is_snapshot,
            bytes: message.bytes,
        };
        if rng.chance(self.weather.lost) {
            return;
        }
        let copies = 1 + u64::from(rng.chance(self.weather.repeated));
        for _ in 0..copies {
            let delay = if rng.chance(self.weather.late) {
                1 + rng.below(400)
            } else {
                1 + rng.below(4)
            };
            self.sent += 1;
            self.on_the_way.insert((now + delay, self.sent), letter.clone());
        }
    }

    /// The messages that arrive by `now`.
    pub(crate) fn arrivals(&mut self, now: u64) -> Vec<Letter> {
        let later = self.on_the_way.split_off(&(now + 1, 0));
        let due = std::mem::replace(&mut self.on_the_way, later);
        due.into_values()
            .filter(|letter| !self.cut.contains(&(letter.from, letter.to)))
            .collect()
    }
}
