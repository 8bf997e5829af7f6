//! RF-2: nothing is applied, and nothing is promised to a peer, before it is durable.

use prost_raft::Message as _;
use raft::eraftpb::{Message, MessageType};
use tramontane_coordinator::raft::node::Outbound;

use super::{Checked, ensure};

/// What is on a member's disk before it does what is ready.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Durable {
    pub(in super::super) last: u64,
    pub(in super::super) term: u64,
    pub(in super::super) syncs: u64,
}

/// A message left after so many syncs of the disk.
pub(in super::super) fn check_sent(before: Durable, message: &Outbound, syncs: u64) -> Checked {
    if syncs > before.syncs {
        return Ok(());
    }
    let Ok(message) = Message::decode(message.bytes.as_slice()) else {
        return Ok(());
    };
    let confirms = message.get_msg_type() == MessageType::MsgAppendResponse && !message.reject;
    ensure("RF-2", !confirms || message.index <= before.last, || {
        let (index, last) = (message.index, before.last);
        format!("entry {index} was confirmed, the disk has {last} entries")
    })?;
    let votes = message.get_msg_type() == MessageType::MsgRequestVoteResponse && !message.reject;
    ensure("RF-2", !votes || message.term <= before.term, || {
        format!("a vote in term {} left before it was on disk", message.term)
    })
}

/// Entries up to `index` were applied after so many syncs of the disk.
pub(in super::super) fn check_applied(before: Durable, index: u64, syncs: u64) -> Checked {
    ensure("RF-2", syncs > before.syncs || index <= before.last, || {
        format!("entry {index} was applied, the disk has {} entries", before.last)
    })
}
