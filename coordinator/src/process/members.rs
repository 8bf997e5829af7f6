//! The coordinators as raft has them, for operators.

use std::collections::BTreeSet;

use tramontane_model::ids::CoordinatorId;

use crate::control::controller::{Change, MemberView};
use crate::control::state::ClusterState;
use crate::raft::RaftStatus;
use crate::raft::node::{check_add, check_remove};
use crate::rpc::redirect::Directory;

/// Why a change of the members cannot be made now, as the leader sees them.
pub(super) fn check(status: &RaftStatus, state: &ClusterState, change: &Change) -> Result<(), String> {
    match change {
        Change::Drain { .. } | Change::Undrain { .. } => Ok(()),
        Change::AddCoordinator { id, .. } => {
            let added = state.parts.contains_key(id);
            if status.members.contains(id) && !added {
                return Err(format!("coordinator {id} is a member already"));
            }
            check_add(status, *id)
        }
        Change::RemoveCoordinator { id } => {
            let known = status.members.contains(id) || state.parts.contains_key(id);
            if !known {
                let members: Vec<String> = status.members.iter().map(ToString::to_string).collect();
                let members = members.join(", ");
                return Err(format!(
                    "there is no coordinator {id}; the members are: {members}"
                ));
            }
            check_remove(status, *id)
        }
    }
}

/// Every coordinator that takes part, is to, or did.
pub(super) fn views(status: &RaftStatus, state: &ClusterState, directory: &Directory) -> Vec<MemberView> {
    let mut ids: BTreeSet<CoordinatorId> = status.members.iter().copied().collect();
    ids.extend(state.parts.keys());
    let view = |id: CoordinatorId| {
        let peer = status.peers.iter().find(|peer| peer.id == id);
        let own = id == status.id;
        let takes_part = status.members.contains(&id);
        MemberView {
            id: id.0,
            address: directory.address(id).unwrap_or_default(),
            part: match (state.is_removed(id), takes_part) {
                (true, true) => "leaving",
                (true, false) => "removed",
                (false, false) => "joining",
                (false, true) if status.voters.contains(&id) => "voter",
                (false, true) => "learner",
            },
            active: own || peer.is_some_and(|peer| peer.recently_active),
            matched: match own {
                true => status.last_index,
                false => peer.map_or(0, |peer| peer.matched),
            },
        }
    };
    ids.into_iter().map(view).collect()
}
