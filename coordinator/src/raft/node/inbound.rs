//! Messages from peers, checked before raft-rs sees them.
//!
//! raft-rs panics on many messages that no correct member sends (an unknown kind, a commit index past the log, a
//! gap between entries), and allocates for whatever a message claims to hold. Everything here can be said of a
//! message alone; what depends on the log is checked by the node.

use std::collections::BTreeSet;

use prost_raft::Message as _;
use prost_raft::bytes::Buf;
use prost_raft::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};
use tramontane_model::ids::CoordinatorId;

use super::error::Refusal;
use super::{MAX_MESSAGE_BYTES, MAX_PROPOSAL_BYTES};
use crate::raft::identity::MAX_TAKING_PART;

/// Most entries in one message; the log is truncated long before it holds as many.
const MAX_ENTRIES: usize = 1 << 16;
/// Longest description of a checkpoint: index, term and members.
const MAX_METADATA_BYTES: usize = 1 << 10;
/// Longest context: a read's number, or raft's word for a handover.
const MAX_CONTEXT_BYTES: usize = 32;
/// No index or term comes near this; raft-rs adds to them without looking.
const MAX_COUNTER: u64 = 1 << 62;

/// Field numbers in eraftpb.proto.
mod field {
    pub(super) const MESSAGE_ENTRIES: u32 = 7;
    pub(super) const MESSAGE_SNAPSHOT: u32 = 9;
    pub(super) const SNAPSHOT_METADATA: u32 = 2;
}

/// Decodes a message that `from` delivered to `to`.
pub(super) fn parse(from: CoordinatorId, to: CoordinatorId, bytes: &[u8]) -> Result<Message, Refusal> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(Refusal::TooLarge {
            bytes: bytes.len(),
            limit: MAX_MESSAGE_BYTES,
        });
    }
    bound_parts(bytes)?;
    let message = Message::decode(bytes).map_err(|e| Refusal::Malformed(e.to_string()))?;
    if message.from != from.0 || from == to {
        return Err(Refusal::Sender {
            from,
            claimed: message.from,
        });
    }
    if message.to != to.0 {
        return Err(Refusal::Recipient {
            to: message.to,
            id: to,
        });
    }
    check(&message).map_err(|detail| Refusal::Forbidden { from, detail })?;
    Ok(message)
}

/// Counts what decoding would allocate many times its encoded size for.
fn bound_parts(bytes: &[u8]) -> Result<(), Refusal> {
    let mut entries = 0;
    for_each_part(bytes, |number, part| {
        entries += usize::from(number == field::MESSAGE_ENTRIES);
        if entries > MAX_ENTRIES {
            return Err(Refusal::Malformed(format!("more than {MAX_ENTRIES} entries")));
        }
        if number != field::MESSAGE_SNAPSHOT {
            return Ok(());
        }
        for_each_part(part, |number, part| {
            if number == field::SNAPSHOT_METADATA && part.len() > MAX_METADATA_BYTES {
                let found = part.len();
                return Err(Refusal::Malformed(format!(
                    "a checkpoint's description of {found} bytes, at most {MAX_METADATA_BYTES} are taken"
                )));
            }
            Ok(())
        })
    })
}

/// Calls `visit` with every length-delimited field of an encoded message.
fn for_each_part<'a>(
    mut bytes: &'a [u8],
    mut visit: impl FnMut(u32, &'a [u8]) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let malformed = |e: prost_raft::DecodeError| Refusal::Malformed(e.to_string());
    while bytes.has_remaining() {
        let (number, wire_type) = decode_key(&mut bytes).map_err(malformed)?;
        if wire_type == WireType::LengthDelimited {
            let length = decode_varint(&mut bytes).map_err(malformed)?;
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let Some((part, rest)) = bytes.split_at_checked(length) else {
                return Err(Refusal::Malformed(format!(
                    "field {number} ends after the message"
                )));
            };
            visit(number, part)?;
            bytes = rest;
        } else {
            skip_field(wire_type, number, &mut bytes, DecodeContext::default()).map_err(malformed)?;
        }
    }
    Ok(())
}

/// What any correct member's message keeps to.
fn check(message: &Message) -> Result<(), String> {
    let kind = MessageType::from_i32(message.msg_type)
        .ok_or_else(|| format!("its kind {} is unknown", message.msg_type))?;
    let counters = [
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
    ];
    if counters.iter().any(|counter| *counter > MAX_COUNTER) {
        return Err(format!("{kind:?} has an index or term over {MAX_COUNTER}"));
    }
    if message.context.len() > MAX_CONTEXT_BYTES {
        return Err(format!(
            "{kind:?} has a context of {} bytes",
            message.context.len()
        ));
    }
    if message.request_snapshot != 0 {
        return Err(format!("{kind:?} asks for a checkpoint"));
    }
    // raft-rs takes a message without a term for one of this process.
    if (message.term == 0) != (kind == MessageType::MsgReadIndex) {
        return Err(format!("{kind:?} has term {}", message.term));
    }
    if message.snapshot.is_some() != (kind == MessageType::MsgSnapshot) {
        return Err(format!("{kind:?} and a checkpoint do not go together"));
    }
    match kind {
        MessageType::MsgAppend => check_append(message),
        MessageType::MsgSnapshot => check_snapshot(message),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => check_read(message),
        MessageType::MsgAppendResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgTimeoutNow => match message.entries.len() {
            0 => Ok(()),
            found => Err(format!("{kind:?} has {found} entries")),
        },
        // The first six never leave a process; followers here pass on neither proposals nor handovers.
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgPropose
        | MessageType::MsgTransferLeader => Err(format!("{kind:?} is not for peers")),
    }
}

fn check_append(message: &Message) -> Result<(), String> {
    // Only the place before the first entry has no term.
    if (message.index == 0) != (message.log_term == 0) {
        return Err(format!(
            "it appends after entry {} of term {}",
            message.index, message.log_term
        ));
    }
    let mut before = (message.index, message.log_term);
    for entry in &message.entries {
        check_entry(entry)?;
        if entry.index != before.0 + 1 || entry.term < before.1.max(1) || entry.term > message.term {
            return Err(format!(
                "entry {} of term {} follows {} of term {} in term {}",
                entry.index, entry.term, before.0, before.1, message.term
            ));
        }
        before = (entry.index, entry.term);
    }
    Ok(())
}

fn check_entry(entry: &Entry) -> Result<(), String> {
    if EntryType::from_i32(entry.entry_type).is_none() {
        return Err(format!(
            "entry {} is of the unknown kind {}",
            entry.index, entry.entry_type
        ));
    }
    if entry.data.len() > MAX_PROPOSAL_BYTES || entry.context.len() > MAX_CONTEXT_BYTES {
        let (data, context) = (entry.data.len(), entry.context.len());
        return Err(format!(
            "entry {} has {data} bytes and a context of {context}",
            entry.index
        ));
    }
    Ok(())
}

fn check_snapshot(message: &Message) -> Result<(), String> {
    if !message.entries.is_empty() {
        return Err("a checkpoint and entries do not go together".to_owned());
    }
    let metadata = message
        .snapshot
        .as_ref()
        .and_then(|snapshot: &Snapshot| snapshot.metadata.as_ref());
    let Some((metadata, members)) = metadata.and_then(|m| Some((m, m.conf_state.as_ref()?))) else {
        return Err("the checkpoint does not name its place or its members".to_owned());
    };
    let (index, term) = (metadata.index, metadata.term);
    if !(1..=MAX_COUNTER).contains(&index) || !(1..=message.term).contains(&term) {
        return Err(format!(
            "the checkpoint is at entry {index} of term {term} in term {}",
            message.term
        ));
    }
    check_members(members).map_err(|problem| format!("the checkpoint's members are {members:?}: {problem}"))
}

/// raft-rs takes what it restores for what a change could have led to.
fn check_members(members: &ConfState) -> Result<(), &'static str> {
    let set = |ids: &[u64]| {
        let set: BTreeSet<u64> = ids.iter().copied().collect();
        let distinct = set.len() == ids.len() && !set.contains(&0);
        distinct.then_some(set).ok_or("an id is 0 or there twice")
    };
    let [voters, outgoing, learners, next] = [
        &members.voters,
        &members.voters_outgoing,
        &members.learners,
        &members.learners_next,
    ];
    let [voters, outgoing, learners, next] = [set(voters)?, set(outgoing)?, set(learners)?, set(next)?];
    if voters.is_empty() {
        return Err("nobody votes");
    }
    let voting = &voters | &outgoing;
    if !voting.is_disjoint(&learners) {
        return Err("one both votes and learns");
    }
    if !next.is_subset(&outgoing) || !next.is_disjoint(&voters) {
        return Err("one is to learn that does not vote");
    }
    // Votes here change step by step, by whoever leads.
    if members.auto_leave {
        return Err("a joint state leaves itself");
    }
    if (&voting | &learners).len() > MAX_TAKING_PART {
        return Err("there are too many");
    }
    Ok(())
}

fn check_read(message: &Message) -> Result<(), String> {
    match message.entries.as_slice() {
        [request] if request.data.len() <= MAX_CONTEXT_BYTES && request.context.is_empty() => {
            check_entry(request)
        }
        others => Err(format!(
            "a read with {} entries, or too long a number",
            others.len()
        )),
    }
}
