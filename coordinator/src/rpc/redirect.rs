//! How a coordinator that does not lead names the one that does.

use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tramontane_model::ids::CoordinatorId;

use super::desk::AskError;
use crate::config::Member;

/// Metadata key of the leader's id; its value is empty when no leader is known.
pub const LEADER_ID_KEY: &str = "tramontane-leader-id";
/// Metadata key of the leader's address, `host:port`; its value is empty when no leader is known.
pub const LEADER_ADDRESS_KEY: &str = "tramontane-leader-address";

/// Where the members are. Clones are the same.
#[derive(Clone, Debug)]
pub struct Directory(Arc<BTreeMap<CoordinatorId, String>>);

impl Directory {
    /// The members that found the cluster.
    pub fn new(members: &[Member]) -> Self {
        let members = members.iter();
        Self(Arc::new(
            members
                .map(|member| (CoordinatorId(member.id), member.address.clone()))
                .collect(),
        ))
    }

    /// A member's gRPC address, `host:port`.
    pub fn address(&self, id: CoordinatorId) -> Option<&str> {
        self.0.get(&id).map(String::as_str)
    }

    /// All members.
    pub fn ids(&self) -> impl Iterator<Item = CoordinatorId> {
        self.0.keys().copied()
    }

    /// An error of the task as gRPC says it.
    pub fn status(&self, error: AskError) -> Status {
        let message = error.to_string();
        match error {
            AskError::NotLeader { leader } => {
                let address = leader.and_then(|id| self.address(id)).unwrap_or_default();
                let id = leader.map(|id| id.to_string()).unwrap_or_default();
                let mut status = Status::failed_precondition(message);
                for (key, value) in [(LEADER_ID_KEY, id.as_str()), (LEADER_ADDRESS_KEY, address)] {
                    // Addresses were checked when the configuration was read: they are plain ASCII.
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
