//! Which replicas a request may go to, and what is missing when there is none.
//!
//! Pure: the routes are what the gateway needs to know of the cluster state, and no more.

use tramontane_model::ids::Fence;

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
    /// This coordinator takes part in the cluster no more.
    #[error("this coordinator takes part no more: {reason}")]
    CutOff {
        /// Why.
        reason: String,
    },
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
            Self::Unplaceable { .. } | Self::CutOff { .. } => false,
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

    /// The heads of replicas that serve, by id.
    pub(super) fn targets(&self) -> impl Iterator<Item = Target> + '_ {
        self.replicas.iter().filter_map(|route| {
            let address = route.head.clone()?;
            let fence = route.fence;
            Some(Target { fence, address })
        })
    }

    /// How many replicas serve.
    pub fn serving(&self) -> usize {
        self.replicas.iter().filter(|route| route.head.is_some()).count()
    }

    /// Whether this generation serves.
    pub(super) fn serves(&self, fence: Fence) -> bool {
        let mut routes = self.replicas.iter();
        routes.any(|route| route.fence == fence && route.head.is_some())
    }
}

#[cfg(test)]
mod tests {
    use tramontane_model::ids::{Generation, ReplicaId};

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
    fn those_that_serve_are_targets() {
        let routes = routes(&[
            (fence(1, 1), None),
            (fence(2, 4), Some("w2:1")),
            (fence(3, 1), Some("w3:1")),
        ]);
        let targets: Vec<_> = routes.targets().map(|one| (one.fence, one.address)).collect();
        assert_eq!(
            targets,
            [(fence(2, 4), "w2:1".to_owned()), (fence(3, 1), "w3:1".to_owned())]
        );
        assert_eq!(routes.serving(), 2);
        assert!(routes.serves(fence(2, 4)));
        assert!(!routes.serves(fence(2, 3)) && !routes.serves(fence(1, 1)));
    }

    #[test]
    fn what_is_missing_is_told() {
        let missing = routes(&[(fence(1, 1), None)]).missing;
        assert_eq!(missing.to_string(), "no replica serves: 12 bytes are missing");
        assert!(!missing.is_passing());
        assert!(Routes::unknown().missing.is_passing());
    }
}
