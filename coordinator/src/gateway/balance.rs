//! How requests spread over replicas: what is known of each, and the choice.
//!
//! What a replica has to do is what this gateway has given it and what others have: the leader tells what the schedulers
//! reported, and what is not this gateway's own is somebody else's. Choosing and counting are one step, so that requests
//! that arrive together see one another.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tramontane_model::ids::{Fence, ReplicaId};
use tramontane_model::members::SchedulerLoad;

use super::choice::{Candidate, Reason, by_prefix, in_turn};
use super::prefixes::{MAX_ENTRIES, Prefix, PrefixTable};
use super::routes::{NotServing, Routes, Target};
use crate::config::{RoutingConfig, RoutingPolicy};

/// A generation at which an attempt broke off is left alone for so long where there are others: about as long as the
/// cluster needs to notice what happened.
const SUSPECT_FOR: Duration = Duration::from_secs(3);

/// Keeps the choices for one prompt on one replica, where its blocks are shared. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Together(Arc<Mutex<Option<ReplicaId>>>);

impl Together {
    fn lock(&self) -> MutexGuard<'_, Option<ReplicaId>> {
        // Nothing panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for Together {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Requests of this gateway at a replica.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    now: u32,
    /// The most there were at once since the leader was last heard, and before that since the time before: reports are
    /// as old as that.
    most: [u32; 2],
}

#[derive(Debug)]
struct State {
    table: PrefixTable,
    own: BTreeMap<ReplicaId, Own>,
    /// Requests of other gateways.
    elsewhere: BTreeMap<Fence, u32>,
    suspects: BTreeMap<Fence, Instant>,
    turn: u64,
}

/// Chooses replicas.
#[derive(Debug)]
pub(super) struct Balancer {
    config: RoutingConfig,
    block_tokens: u32,
    key: [u8; 16],
    state: Mutex<State>,
}

/// Where a request goes.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) target: Target,
    pub(super) reason: Reason,
    /// What the replica had to do before.
    pub(super) load: u32,
    /// Counts the request at the replica until it is dropped.
    pub(super) _counted: Counted,
}

impl Balancer {
    pub(super) fn new(config: RoutingConfig, block_tokens: u32) -> Self {
        let random = || RandomState::new().build_hasher().finish().to_le_bytes();
        let mut key = [0; 16];
        key[..8].copy_from_slice(&random());
        key[8..].copy_from_slice(&random());
        Self {
            config,
            block_tokens,
            key,
            state: Mutex::new(State {
                table: PrefixTable::new(MAX_ENTRIES),
                own: BTreeMap::new(),
                elsewhere: BTreeMap::new(),
                suspects: BTreeMap::new(),
                turn: 0,
            }),
        }
    }

    /// The beginnings of a prompt, as [`Balancer::choose`] takes them.
    pub(super) fn prefix(&self, salt: &[u8], prompt: &[u32]) -> Prefix {
        Prefix::new(&self.key, self.block_tokens, salt, prompt)
    }

    /// Takes in what the schedulers are doing.
    pub(super) fn heard(&self, loads: &[SchedulerLoad]) {
        let mut state = self.lock();
        let State { own, elsewhere, .. } = &mut *state;
        *elsewhere = loads
            .iter()
            .map(|load| {
                let own = own.get(&load.fence.replica).copied().unwrap_or_default();
                let [newer, older] = own.most;
                let all = load.running.saturating_add(load.waiting);
                (load.fence, all.saturating_sub(newer.max(older)))
            })
            .collect();
        own.retain(|_, own| {
            own.most = [own.now, own.most[0]];
            own.most != [0, 0]
        });
    }

    /// Leaves a generation alone for a while.
    pub(super) fn suspect(&self, fence: Fence, now: Instant) {
        let mut state = self.lock();
        state.suspects.retain(|_, until| now < *until);
        state.suspects.insert(fence, now + SUSPECT_FOR);
    }

    /// A replica that serves, if there is one: at best one that was not `tried` and at which nothing broke off of late.
    pub(super) fn choose(
        self: &Arc<Self>,
        routes: &Routes,
        prefix: &Prefix,
        tried: &BTreeSet<Fence>,
        together: &Together,
        now: Instant,
    ) -> Result<Chosen, NotServing> {
        let mut state = self.lock();
        let mut with = together.lock();
        let all: Vec<Target> = routes.targets().collect();
        let is_new = |target: &Target| !tried.contains(&target.fence);
        let is_suspect = |fence: Fence| state.suspects.get(&fence).is_some_and(|until| now < *until);
        let pools: [&dyn Fn(&Target) -> bool; 3] = [
            &|target| is_new(target) && !is_suspect(target.fence),
            &is_new,
            &|_| true,
        ];
        let pool = pools.iter().find(|pool| all.iter().any(pool));
        let candidates: Vec<Candidate> = all
            .iter()
            .filter(|target| pool.is_some_and(|pool| pool(target)))
            .map(|target| Candidate {
                fence: target.fence,
                load: state.load(target.fence),
            })
            .collect();
        let sibling = candidates.iter().find(|one| Some(one.fence.replica) == *with);
        let chosen = match (sibling, self.config.policy) {
            (Some(sibling), _) => Some((sibling.fence, Reason::Together)),
            (None, RoutingPolicy::Prefix) => {
                by_prefix(&candidates, prefix, &state.table, self.config.max_imbalance)
            }
            (None, RoutingPolicy::RoundRobin) => {
                state.turn = state.turn.wrapping_add(1);
                in_turn(&candidates, state.turn)
            }
        };
        let found = chosen.and_then(|(fence, reason)| {
            let target = all.into_iter().find(|target| target.fence == fence)?;
            Some((target, reason))
        });
        let (target, reason) = found.ok_or_else(|| routes.missing.clone())?;
        let replica = target.fence.replica;
        *with = Some(replica);
        let load = state.load(target.fence);
        state.table.given(prefix, target.fence);
        let own = state.own.entry(replica).or_default();
        own.now = own.now.saturating_add(1);
        own.most[0] = own.most[0].max(own.now);
        Ok(Chosen {
            target,
            reason,
            load,
            _counted: Counted {
                balancer: Arc::clone(self),
                replica,
            },
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held, and counts are whole at every point.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn load(&self, fence: Fence) -> u32 {
        let own = self.own.get(&fence.replica).map_or(0, |own| own.now);
        let elsewhere = self.elsewhere.get(&fence).copied().unwrap_or(0);
        own.saturating_add(elsewhere)
    }
}

/// A request at a replica.
#[derive(Debug)]
pub(super) struct Counted {
    balancer: Arc<Balancer>,
    replica: ReplicaId,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self.balancer.lock();
        if let Some(own) = state.own.get_mut(&self.replica) {
            own.now = own.now.saturating_sub(1);
        }
    }
}
