//! The status as the command line reads it.

use super::*;

#[expect(dead_code, reason = "the command line prints what is only read here")]
#[path = "../../../../../cli/src/view.rs"]
mod view;

#[test]
fn the_command_line_reads_it() {
    let mut cluster = Cluster::new(options(Some(2), Some(2)));
    cluster.join_all(&["w1", "w2", "w3", "w4", "w5"]);
    cluster.report("w5", DeviceState::Idle);
    let json = |cluster: &Cluster| serde_json::to_string(&cluster.controller.status(&cluster.state)).unwrap();
    let status: view::Status = serde_json::from_str(&json(&cluster)).unwrap();
    assert_eq!(
        (status.model.as_str(), status.leader, status.term),
        ("mini", Some(1), 1)
    );
    let missing = status.missing.unwrap();
    assert!(missing.contains("is loading, 0 of 0 bytes"), "{missing}");
    let coordinator = &status.nodes[0];
    assert_eq!(
        (coordinator.id.as_str(), coordinator.role.as_str()),
        ("coordinator-1", "leader")
    );
    let node = |id: &str| status.nodes.iter().find(|node| node.id == id).unwrap();
    assert!(node("w5").standby && !node("w1").standby);
    assert_eq!(node("w5").devices[0].state, "idle");
    assert_eq!(node("w5").devices[0].held_bytes, 5);
    let replica = &status.replicas[0];
    assert_eq!(
        (replica.id, replica.generation, replica.phase.as_str()),
        (1, 1, "loading")
    );
    assert_eq!(replica.stages[1].layers, (3, 6));
    assert_eq!(replica.stages[0].groups[1].experts, (8, 16));
    assert_eq!(
        (replica.kv.blocks, replica.kv.format.as_deref()),
        (64, Some("f32"))
    );
    cluster.all_ready(1);
    let status: view::Status = serde_json::from_str(&json(&cluster)).unwrap();
    assert_eq!(status.missing, None);
    cluster.step(Event::Follows { leader: None });
    let status: view::Status = serde_json::from_str(&json(&cluster)).unwrap();
    assert_eq!((status.leader, status.term), (None, 0));
}
