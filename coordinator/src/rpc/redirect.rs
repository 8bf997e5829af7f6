//! How a coordinator that does not lead names the one that does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tramontane_model::ids::CoordinatorId;

use super::desk::AskError;
use crate::config::Member;
use crate::control::state::{ClusterState, Part};
use crate::raft::AppliedState;

/// Metadata key of the leader's id; its value is empty when no leader is known.
pub const LEADER_ID_KEY: &str = "tramontane-leader-id";
/// Metadata key of the leader's address, `host:port`; its value is empty when no leader is known.
pub const LEADER_ADDRESS_KEY: &str = "tramontane-leader-address";

/// Where the coordinators are: the first members, and those that the state says were added. Clones are the same.
#[derive(Clone, Debug)]
pub struct Directory {
    first: Arc<BTreeMap<CoordinatorId, String>>,
    state: Option<watch::Receiver<AppliedState<ClusterState>>>,
}

impl Directory {
    /// The members that found the cluster.
    pub fn new(members: &[Member]) -> Self {
        let members = members.iter();
        let first = members.map(|member| (CoordinatorId(member.id), member.address.clone()));
        Self {
            first: Arc::new(first.collect()),
            state: None,
        }
    }

    /// The same with whom the applied state adds and removes.
    #[must_use]
    pub fn following(self, state: watch::Receiver<AppliedState<ClusterState>>) -> Self {
        let state = Some(state);
        Self { state, ..self }
    }

    /// A coordinator's gRPC address, `host:port`.
    pub fn address(&self, id: CoordinatorId) -> Option<String> {
        let first = || self.first.get(&id).cloned();
        let Some(state) = &self.state else {
            return first();
        };
        match state.borrow().view.parts.get(&id) {
            Some(Part::Added { address }) => Some(address.clone()),
            Some(Part::Removed { address }) => address.clone().or_else(first),
            None => first(),
        }
    }

    /// Whether a coordinator was removed.
    pub fn is_removed(&self, id: CoordinatorId) -> bool {
        let state = self.state.as_ref();
        state.is_some_and(|state| state.borrow().view.is_removed(id))
    }

    /// All that were not removed.
    pub fn ids(&self) -> BTreeSet<CoordinatorId> {
        let mut ids: BTreeSet<_> = self.first.keys().copied().collect();
        if let Some(state) = &self.state {
            let view = &state.borrow().view;
            ids.extend(view.added().map(|(id, _)| id));
            ids.retain(|id| !view.is_removed(*id));
        }
        ids
    }

    /// An error of the task as gRPC says it.
    pub fn status(&self, error: AskError) -> Status {
        let message = error.to_string();
        match error {
            AskError::NotLeader { leader } => {
                let address = leader.and_then(|id| self.address(id)).unwrap_or_default();
                let id = leader.map(|id| id.to_string()).unwrap_or_default();
                let mut status = Status::failed_precondition(message);
                for (key, value) in [
                    (LEADER_ID_KEY, id.as_str()),
                    (LEADER_ADDRESS_KEY, address.as_str()),
                ] {
                    // Addresses were checked where they came in: they are plain ASCII.
                    let value = MetadataValue::try_from(value).unwrap_or(MetadataValue::from_static(""));
                    status.metadata_mut().insert(key, value);
                }
                status
            }
            AskError::Refused(_) => Status::aborted(message),
            AskError::Unavailable(_) => Status::unavailable(message),
        }
    }
}

/// Whether a status says that somebody else leads.
pub fn is_redirect(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.metadata().contains_key(LEADER_ADDRESS_KEY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> Directory {
        let member = |id| Member {
            id,
            address: format!("127.0.0.1:700{id}"),
        };
        Directory::new(&[member(1), member(2), member(3)])
    }

    #[test]
    fn a_redirect_names_the_leader_or_nobody() {
        for (leader, id, address) in [
            (Some(CoordinatorId(2)), "2", "127.0.0.1:7002"),
            (Some(CoordinatorId(9)), "9", ""),
            (None, "", ""),
        ] {
            let status = directory().status(AskError::NotLeader { leader });
            assert!(is_redirect(&status));
            let value = |key| status.metadata().get(key).unwrap().to_str().unwrap();
            assert_eq!((value(LEADER_ID_KEY), value(LEADER_ADDRESS_KEY)), (id, address));
        }
        let refused = directory().status(AskError::Refused("no".to_owned()));
        assert!(!is_redirect(&refused));
        assert_eq!(refused.code(), Code::Aborted);
    }
}
