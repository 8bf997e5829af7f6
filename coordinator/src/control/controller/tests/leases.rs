//! When workers count as lost.

use super::*;

#[test]
fn a_report_renews_the_lease_and_silence_ends_it() {
    let mut cluster = Cluster::new(options(Some(4), None));
    cluster.join_all(&["w1", "w2"]);
    let effects = cluster.pass(LEASE - 1, &["w1"]);
    assert_eq!(cluster.state.workers.len(), 2);
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::EndSession { .. }))
    );
    let effects = cluster.pass(1, &["w1"]);
    let workers: Vec<_> = cluster.state.workers.keys().collect();
    assert_eq!(workers, [&name("w1")]);
    let session = cluster.sessions[&name("w2")];
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::EndSession { session: ended, .. } if *ended == session)),
        "{effects:?}"
    );
    let status = cluster.controller.status(&cluster.state);
    assert!(
        status
            .nodes
            .iter()
            .any(|node| node.id == "w2" && node.state == "lost")
    );
}

#[test]
fn a_broken_session_leaves_one_heartbeat() {
    let mut cluster = Cluster::new(options(Some(4), None));
    cluster.join_all(&["w1", "w2"]);
    cluster.pass(LEASE, &["w1", "w2"]);
    let worker = name("w2");
    let session = cluster.sessions[&worker];
    cluster.run(Event::Ended { session, worker });
    cluster.pass(HEARTBEAT - 1, &["w1"]);
    assert_eq!(cluster.state.workers.len(), 2);
    cluster.pass(1, &["w1"]);
    assert_eq!(cluster.state.workers.len(), 1);
}

#[test]
fn a_worker_that_listens_no_more_is_lost_at_once() {
    let mut cluster = Cluster::new(options(Some(4), None));
    cluster.join_all(&["w1", "w2"]);
    let gone = |incarnation| Event::Gone {
        worker: name("w2"),
        incarnation,
    };
    let end = |cluster: &mut Cluster| {
        let worker = name("w2");
        let session = cluster.sessions[&worker];
        cluster.run(Event::Ended { session, worker });
    };
    // Not while a leader is new, nor while its session goes on, nor one that was started again.
    end(&mut cluster);
    cluster.run(gone(1));
    assert_eq!(cluster.state.workers.len(), 2);
    cluster.join(&info("w2", 1, ENOUGH));
    cluster.pass(LEASE, &["w1", "w2"]);
    cluster.run(gone(1));
    assert_eq!(cluster.state.workers.len(), 2);
    end(&mut cluster);
    cluster.run(gone(0));
    assert_eq!(cluster.state.workers.len(), 2);
    cluster.run(gone(1));
    assert_eq!(cluster.state.workers.len(), 1);
}

#[test]
fn a_worker_that_comes_back_in_time_is_not_lost() {
    let mut cluster = Cluster::new(options(Some(4), None));
    cluster.join_all(&["w1"]);
    cluster.pass(LEASE, &["w1"]);
    let worker = name("w1");
    let session = cluster.sessions[&worker];
    cluster.run(Event::Ended { session, worker });
    cluster.pass(HEARTBEAT - 1, &[]);
    cluster.join(&info("w1", 1, ENOUGH));
    cluster.pass(LEASE - 1, &[]);
    assert_eq!(cluster.state.workers.len(), 1);
}

#[test]
fn a_new_leader_gives_everybody_a_whole_lease() {
    let mut cluster = Cluster::new(options(None, None));
    cluster.join_all(&["w1", "w2"]);
    cluster.all_ready(1);
    cluster.now = cluster.now.after_ms(10 * LEASE);
    cluster.run(Event::Follows { leader: None });
    cluster.run(Event::Leads { term: 3 });
    cluster.join(&info("w1", 1, ENOUGH));
    // Not even a session that broke makes it shorter.
    let worker = name("w1");
    let session = cluster.sessions[&worker];
    cluster.run(Event::Ended { session, worker });
    cluster.pass(LEASE - 1, &[]);
    assert_eq!(cluster.state.workers.len(), 2);
    assert_eq!(cluster.phase(), Some(("serving", 1)));
    cluster.pass(1, &[]);
    assert_eq!(cluster.state.workers.len(), 0);
}

#[test]
fn a_loss_that_was_not_committed_is_proposed_again() {
    let mut cluster = Cluster::new(options(Some(4), None));
    cluster.join_all(&["w1"]);
    cluster.now = cluster.now.after_ms(LEASE);
    let proposed = cluster.step(Event::Elapsed);
    assert!(matches!(
        &proposed[..],
        [Effect::Propose {
            command: Command::WorkerLost { .. },
            ..
        }]
    ));
    let sequence = cluster.last_sequence;
    let result = ProposalResult::Unknown;
    assert_eq!(cluster.step(Event::Proposed { sequence, result }), []);
    assert_eq!(cluster.step(Event::Elapsed), []);
    cluster.pass(HEARTBEAT, &[]);
    assert_eq!(cluster.state.workers.len(), 0);
    assert!(cluster.last_sequence > sequence);
}
