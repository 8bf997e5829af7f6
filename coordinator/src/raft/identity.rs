//! Which cluster a coordinator belongs to, who its members are, and when each may stand for election.
//!
//! No I/O, clock or randomness: election timeouts are drawn from a seed that every member derives alike, so
//! that they are distinct per member and a simulation replays.

use std::fmt;

use tramontane_model::ids::CoordinatorId;

/// Ticks between two heartbeats of a leader.
pub const HEARTBEAT_TICKS: usize = 2;
/// Ticks without a quorum after which a leader steps down, and during which a follower that heard from its
/// leader refuses votes.
pub const ELECTION_TICKS: usize = 20;
/// A member stands at the earliest this many ticks after the others stopped refusing votes.
const STAND_LEAD_TICKS: usize = 2;
/// Ticks between the election timeouts of two members; longer than a vote takes to go round.
const STAND_STEP_TICKS: usize = 3;
/// Most members of a cluster.
pub const MAX_MEMBERS: usize = 5;
/// Most coordinators that take part while members change, those that learn included.
pub const MAX_TAKING_PART: usize = MAX_MEMBERS + 2;
/// Longest cluster name, in bytes.
pub const MAX_CLUSTER_NAME_BYTES: usize = 64;
/// The longest that any member waits for its leader, in ticks.
pub const MAX_ELECTION_TICKS: usize =
    ELECTION_TICKS + STAND_LEAD_TICKS + (MAX_MEMBERS - 1) * STAND_STEP_TICKS;

const _: () = assert!(5 * HEARTBEAT_TICKS <= ELECTION_TICKS);
const _: () = assert!(HEARTBEAT_TICKS < STAND_STEP_TICKS + STAND_LEAD_TICKS);
const _: () = assert!(MAX_ELECTION_TICKS < 2 * ELECTION_TICKS);

/// Settings that cannot make a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The name is empty, too long, or has other characters.
    #[error(
        "cluster name {found:?} is not valid: use 1 to {MAX_CLUSTER_NAME_BYTES} bytes without control characters"
    )]
    Name {
        /// The name as given, cut to a printable length.
        found: String,
    },
    /// Raft needs an odd number of members, and more than five only slow it down.
    #[error("initial_members has {found} members: a cluster has 1, 3 or 5")]
    Count {
        /// How many were given.
        found: usize,
    },
    /// Zero stands for "nobody" in raft.
    #[error("initial_members has the id 0: ids start at 1")]
    Zero,
    /// The same id twice.
    #[error("initial_members has the id {id} twice: every member needs an id of its own")]
    Twice {
        /// The id.
        id: CoordinatorId,
    },
    /// This coordinator is to join, and is one of the members.
    #[error(
        "coordinator {id} is among initial_members {members} and has join = true: that is for one that is added later"
    )]
    Present {
        /// This coordinator.
        id: CoordinatorId,
        /// The members.
        members: Members,
    },
    /// This coordinator is not one of the members.
    #[error(
        "coordinator {id} is not among initial_members {members}: correct its id, or set join = true if it is to join a cluster that runs"
    )]
    Absent {
        /// This coordinator.
        id: CoordinatorId,
        /// The members.
        members: Members,
    },
}

/// The voting members a cluster starts with: 1, 3 or 5 distinct ids of at least 1, in ascending order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Members(Vec<CoordinatorId>);

impl Members {
    /// Checks and sorts the ids of a cluster's first members.
    pub fn new(ids: impl IntoIterator<Item = CoordinatorId>) -> Result<Self, IdentityError> {
        // One more than allowed is enough to know that there are too many.
        let mut ids: Vec<_> = ids.into_iter().collect();
        if !matches!(ids.len(), 1 | 3 | MAX_MEMBERS) {
            return Err(IdentityError::Count { found: ids.len() });
        }
        ids.sort_unstable();
        if ids.first() == Some(&CoordinatorId(0)) {
            return Err(IdentityError::Zero);
        }
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(IdentityError::Twice { id: pair[0] }),
            None => Ok(Self(ids)),
        }
    }

    /// The ids in ascending order.
    pub fn as_slice(&self) -> &[CoordinatorId] {
        &self.0
    }

    /// The ids as raft-rs wants them.
    pub fn raw(&self) -> Vec<u64> {
        self.0.iter().map(|id| id.0).collect()
    }
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (position, id) in self.0.iter().enumerate() {
            write!(f, "{}{id}", if position == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

/// Who this coordinator is: what its data directory is bound to when it is first used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    cluster: String,
    id: CoordinatorId,
    members: Members,
}

impl Identity {
    /// Checks that the name is usable and that `id` is one of the members.
    pub fn new(cluster: &str, id: CoordinatorId, members: Members) -> Result<Self, IdentityError> {
        if cluster.is_empty()
            || cluster.len() > MAX_CLUSTER_NAME_BYTES
            || cluster.chars().any(char::is_control)
        {
            let found = cluster.chars().take(MAX_CLUSTER_NAME_BYTES + 1).collect();
            return Err(IdentityError::Name { found });
        }
        if !members.0.contains(&id) {
            return Err(IdentityError::Absent { id, members });
        }
        Ok(Self {
            cluster: cluster.to_owned(),
            id,
            members,
        })
    }

    /// A coordinator that is added to a cluster which began with these members.
    pub fn joining(cluster: &str, id: CoordinatorId, members: Members) -> Result<Self, IdentityError> {
        let [first, ..] = members.as_slice() else {
            return Err(IdentityError::Count { found: 0 });
        };
        // The name is checked as a member's is.
        let member = Self::new(cluster, *first, members.clone())?;
        match id {
            CoordinatorId(0) => Err(IdentityError::Zero),
            id if members.0.contains(&id) => Err(IdentityError::Present { id, members }),
            id => Ok(Self { id, ..member }),
        }
    }

    /// The cluster's configured name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// This coordinator.
    pub fn id(&self) -> CoordinatorId {
        self.id
    }

    /// The DNS name by which a coordinator's certificate names it.
    pub fn certificate_name(id: CoordinatorId) -> String {
        format!("coordinator-{id}")
    }

    /// The members the cluster started with.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// What every message between members names: the cluster and the members it started with, so that two
    /// configurations that disagree about the members can never elect two leaders side by side.
    pub fn tag(&self) -> String {
        format!("{}{}", self.cluster, self.members)
    }

    /// Seed of the election timeouts: a hash (FNV-1a) of the tag, equal on every member.
    pub fn election_seed(&self) -> u64 {
        self.tag().bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }

    /// Ticks without a leader after which this member stands for election. Distinct for every first member that uses
    /// the same seed, at most [`MAX_ELECTION_TICKS`]. Those that were added stand between them, by their ids: ids that
    /// follow one another differ.
    pub fn election_timeout_ticks(&self, seed: u64) -> usize {
        let members = self.members.0.len();
        let Some(rank) = self.members.0.iter().position(|id| *id == self.id) else {
            let between = STAND_STEP_TICKS - 1;
            let places = (MAX_MEMBERS - 1) * between;
            let place = usize::try_from(self.id.0 % places as u64).unwrap_or(0);
            let step = (place / between) * STAND_STEP_TICKS + place % between + 1;
            return ELECTION_TICKS + STAND_LEAD_TICKS + step;
        };
        // Rotating the ranks keeps them distinct whatever the seed.
        let shift = usize::try_from(seed % members as u64).unwrap_or(0);
        ELECTION_TICKS + STAND_LEAD_TICKS + ((rank + shift) % members) * STAND_STEP_TICKS
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn members(ids: &[u64]) -> Result<Members, IdentityError> {
        Members::new(ids.iter().map(|id| CoordinatorId(*id)))
    }

    #[test]
    fn only_one_three_or_five_distinct_members_make_a_cluster() {
        for good in [&[7][..], &[3, 1, 2], &[5, 4, 3, 2, 1]] {
            let sorted = members(good).unwrap().raw();
            assert!(sorted.is_sorted() && sorted.len() == good.len());
        }
        for count in [0, 2, 4, 6] {
            let ids: Vec<u64> = (1..=count).collect();
            assert_eq!(members(&ids), Err(IdentityError::Count { found: ids.len() }));
        }
        assert_eq!(members(&[1, 0, 2]), Err(IdentityError::Zero));
        assert_eq!(
            members(&[1, 2, 1]),
            Err(IdentityError::Twice { id: CoordinatorId(1) })
        );
    }

    #[test]
    fn an_identity_names_what_is_wrong() {
        let three = members(&[1, 2, 3]).unwrap();
        let absent = Identity::new("demo", CoordinatorId(4), three.clone()).unwrap_err();
        assert!(absent.to_string().contains("[1, 2, 3]"), "{absent}");
        for name in ["", "a\nb", &"x".repeat(65)] {
            assert!(
                Identity::new(name, CoordinatorId(1), three.clone()).is_err(),
                "{name:?}"
            );
        }
    }

    #[test]
    fn other_members_make_another_tag() {
        let one = Identity::new("demo", CoordinatorId(1), members(&[1, 2, 3]).unwrap()).unwrap();
        let two = Identity::new("demo", CoordinatorId(2), members(&[3, 2, 1]).unwrap()).unwrap();
        let other = Identity::new("demo", CoordinatorId(1), members(&[1, 2, 4]).unwrap()).unwrap();
        assert_eq!(one.tag(), two.tag());
        assert_ne!(one.tag(), other.tag());
    }

    #[test]
    fn election_timeouts_are_distinct_for_every_seed() {
        for size in [1, 3, 5] {
            let ids: Vec<u64> = (1..=size).collect();
            for seed in 0..20 {
                let timeouts: BTreeSet<usize> = ids
                    .iter()
                    .map(|id| {
                        let identity = Identity::new("c", CoordinatorId(*id), members(&ids).unwrap());
                        identity.unwrap().election_timeout_ticks(seed)
                    })
                    .collect();
                assert_eq!(timeouts.len(), ids.len());
                assert!(
                    timeouts
                        .iter()
                        .all(|t| (ELECTION_TICKS..=MAX_ELECTION_TICKS).contains(t))
                );
            }
        }
    }
}
