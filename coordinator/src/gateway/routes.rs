//! Which replica a request goes to, and what is missing when there is none.
//!
//! Pure: the routes are what the gateway needs to know of the cluster state, and no more.

use tramontane_model::ids::{Fence, ReplicaId};

/// Every placed replica, and why none serves if none does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    /// The replicas of the placement map, by id.
    pub replicas: Vec<Route>,
    /// What is missing, should no replica serve.
    pub missing: NotServing,
}

/// One placed replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The replica and its generation.
    pub fence: Fence,
    /// Address of its head worker, `host:port`, if it serves.
    pub head: Option<String>,
}

/// Why no replica serves.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotServing {
    /// Nothing is known of the cluster yet.
    #[error("no replica serves: this coordinator has not heard from the cluster yet")]
    Unknown,
    /// Workers have joined, and nothing is placed on them yet.
    #[error("no replica serves: {workers} workers have joined and none is placed yet")]
    Unplaced {
        /// How many have joined.
        workers: usize,
    },
    /// A replica lost a part and is to be placed anew.
    #[error("no replica serves: {fence} is to be placed anew because {reason}")]
    Broken {
        /// The replica.
        fence: Fence,
        /// What it lost.
        reason: String,
    },
    /// The planner finds no placement.
    #[error("no replica serves: {reason}")]
    Unplaceable {
        /// Why, with the bytes that are missing where that is the reason.
        reason: String,
    },
    /// A replica is placed and its devices load.
    #[error("no replica serves: {fence} is loading, {loaded_bytes} of {total_bytes} bytes so far")]
    Loading {
        /// The replica.
        fence: Fence,
        /// Bytes on its devices so far.
        loaded_bytes: u64,
        /// Bytes in the end; 0 while the devices have not told.
        total_bytes: u64,
    },
}

impl NotServing {
    /// Whether waiting alone may bring a replica.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unknown | Self::Unplaced { .. } | Self::Broken { .. } | Self::Loading { .. } => true,
            Self::Unplaceable { .. } => false,
        }
    }
}

/// Where to submit: a serving replica's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The replica and its generation.
    pub(super) fence: Fence,
    /// Address of its head worker, `host:port`.
    pub(super) address: String,
}

impl Routes {
    /// The routes before the cluster state is known.
    pub fn unknown() -> Self {
        Self {
            replicas: Vec::new(),
            missing: NotServing::Unknown,
        }
    }

    /// The serving replica with the least of `load`, the lowest id among equals; one other than `avoid` if there is.
    pub(super) fn choose(
        &self,
        load: impl Fn(ReplicaId) -> usize,
        avoid: Option<Fence>,
    ) -> Result<Target, NotServing> {
        let serving = self.replicas.iter().filter_map(|route| {
            let address = route.head.clone()?;
            let fence = route.fence;
            Some(Target { fence, address })
        });
        serving
            .min_by_key(|target| {
                let Fence { replica, .. } = target.fence;
                (avoid == Some(target.fence), load(replica), replica)
            })
            .ok_or_else(|| self.missing.clone())
    }

    /// Whether the placement map has this generation.
    pub(super) fn has(&self, fence: Fence) -> bool {
        self.replicas.iter().any(|route| route.fence == fence)
    }
}

#[cfg(test)]
mod tests {
    use tramontane_model::ids::Generation;

    use super::*;

    fn fence(replica: u64, generation: u64) -> Fence {
        Fence {
            replica: ReplicaId(replica),
            generation: Generation(generation),
        }
    }

    fn routes(replicas: &[(Fence, Option<&str>)]) -> Routes {
        let route = |(fence, head): &(Fence, Option<&str>)| Route {
            fence: *fence,
            head: head.map(str::to_owned),
        };
        Routes {
            replicas: replicas.iter().map(route).collect(),
            missing: NotServing::Unplaceable {
                reason: "12 bytes are missing".to_owned(),
            },
        }
    }

    #[test]
    fn the_least_loaded_serving_replica_is_chosen() {
        let routes = routes(&[
            (fence(1, 1), None),
            (fence(2, 4), Some("w2:1")),
            (fence(3, 1), Some("w3:1")),
        ]);
        let chosen = |load: fn(ReplicaId) -> usize, avoid| routes.choose(load, avoid).unwrap().address;
        assert_eq!(chosen(|_| 0, None), "w2:1");
        assert_eq!(chosen(|id| 5 - id.0 as usize, None), "w3:1");
        assert_eq!(chosen(|_| 0, Some(fence(2, 4))), "w3:1");
        // An older generation of it is no reason to avoid it.
        assert_eq!(chosen(|_| 0, Some(fence(2, 3))), "w2:1");
    }

    #[test]
    fn the_only_replica_is_chosen_even_if_it_just_failed() {
        let routes = routes(&[(fence(2, 4), Some("w2:1"))]);
        let target = routes.choose(|_| 9, Some(fence(2, 4))).unwrap();
        assert_eq!(target.address, "w2:1");
        assert!(routes.has(fence(2, 4)));
        assert!(!routes.has(fence(2, 3)));
    }

    #[test]
    fn what_is_missing_is_told() {
        let error = routes(&[(fence(1, 1), None)]).choose(|_| 0, None).unwrap_err();
        assert_eq!(error.to_string(), "no replica serves: 12 bytes are missing");
        assert!(!error.is_passing());
        let error = Routes::unknown().choose(|_| 0, None).unwrap_err();
        assert!(error.is_passing());
    }
}
