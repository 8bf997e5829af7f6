//! Who is let in, and what it is told.

use super::*;

#[test]
fn a_follower_refuses_and_names_the_leader() {
    let mut cluster = Cluster::new(options(None, None));
    let (session, _) = cluster.join(&info("w1", 1, 10));
    let leader = Some(CoordinatorId(2));
    let why = AskRefusal::NotLeader { leader };
    assert_eq!(
        cluster.step(Event::Follows { leader }),
        [Effect::EndSession {
            session,
            why: why.clone()
        }]
    );
    let session = SessionId(9);
    let joined = Event::Joined {
        session,
        info: info("w1", 1, 10),
    };
    let error = why.clone();
    assert_eq!(cluster.step(joined), [Effect::Refuse { session, error }]);
    let ask = AskId(3);
    let result = Err(why);
    assert_eq!(
        cluster.step(Event::Replan { ask }),
        [Effect::Answer { ask, result }]
    );
    assert!(!cluster.controller.leads());
}

#[test]
fn a_leader_describes_what_the_state_lacks() {
    let mut cluster = Cluster::new(options(None, None));
    assert_eq!(cluster.state.model, Some(model()));
    assert_eq!(cluster.state.coordinators[&CoordinatorId(1)], entry(1));
    cluster.run(Event::CoordinatorSeen {
        id: CoordinatorId(2),
        entry: entry(2),
    });
    assert_eq!(cluster.state.coordinators[&CoordinatorId(2)], entry(2));
    let commands = cluster.state.commands;
    cluster.run(Event::CoordinatorSeen {
        id: CoordinatorId(2),
        entry: entry(2),
    });
    assert_eq!(cluster.state.commands, commands);
}

#[test]
fn a_worker_is_let_in_once_its_membership_is_committed() {
    let mut cluster = Cluster::new(options(Some(2), None));
    let session = SessionId(1);
    let info = info("w1", 1, ENOUGH);
    let joined = Event::Joined {
        session,
        info: info.clone(),
    };
    let proposed = cluster.step(joined);
    let [Effect::Propose { sequence, command }] = &proposed[..] else {
        panic!("{proposed:?}");
    };
    assert_eq!(*command, Command::WorkerJoined { info });
    let outcome = cluster.commit(*sequence, command.clone());
    let sequence = *sequence;
    let result = ProposalResult::Committed(outcome);
    let welcome = Directive::Welcome {
        coordinator: CoordinatorId(1),
        term: 1,
        heartbeat_ms: 250,
        lease_ms: 2000,
    };
    assert_eq!(
        cluster.step(Event::Proposed { sequence, result }),
        [
            Effect::Admit { session },
            Effect::Direct {
                session,
                directive: welcome
            }
        ]
    );
}

#[test]
fn a_membership_that_is_not_committed_is_tried_again_by_the_worker() {
    let reason = "another leader".to_owned();
    for result in [ProposalResult::Unknown, ProposalResult::Dropped { reason }] {
        let mut cluster = Cluster::new(options(None, None));
        let session = SessionId(1);
        let info = info("w1", 1, ENOUGH);
        cluster.step(Event::Joined { session, info });
        let sequence = cluster.last_sequence;
        let effects = cluster.step(Event::Proposed { sequence, result });
        assert!(
            matches!(&effects[..], [Effect::Refuse { error: AskRefusal::Unavailable(why), .. }] if why.contains("try again")),
            "{effects:?}"
        );
    }
    // No answer at all.
    let mut cluster = Cluster::new(options(None, None));
    let session = SessionId(1);
    let info = info("w1", 1, ENOUGH);
    cluster.step(Event::Joined { session, info });
    cluster.now = cluster.now.after_ms(4500);
    let effects = cluster.step(Event::Elapsed);
    let refused =
        |effect: &Effect| matches!(effect, Effect::Refuse { session: refused, .. } if *refused == session);
    assert!(effects.iter().any(refused), "{effects:?}");
}

#[test]
fn a_worker_that_makes_no_sense_is_refused_for_good() {
    let mut cluster = Cluster::new(options(None, None));
    let mut bad = info("w1", 1, 10);
    bad.devices.clear();
    let (_, effects) = cluster.join(&bad);
    assert!(
        matches!(&effects[..], [Effect::Refuse { error: AskRefusal::Refused(why), .. }] if why.contains("at least one device")),
        "{effects:?}"
    );
}

#[test]
fn few_joins_are_proposed_at_once_and_all_come_in() {
    let mut cluster = Cluster::new(options(Some(2), None));
    let mut proposals = Vec::new();
    for number in 0..100 {
        let session = SessionId(number);
        let info = info(&format!("w{number}"), 1, 1);
        proposals.extend(cluster.step(Event::Joined { session, info }));
    }
    assert_eq!(proposals.len(), 8);
    let mut admitted = 0;
    while let Some(effect) = proposals.pop() {
        if let Effect::Propose { sequence, command } = effect {
            let proposal = Proposal {
                proposer: sequence + 1000,
                sequence,
                command,
            };
            let result = ProposalResult::Committed(cluster.state.apply_proposal(&proposal));
            proposals.extend(cluster.step(Event::Proposed { sequence, result }));
        } else if matches!(effect, Effect::Admit { .. }) {
            admitted += 1;
        }
    }
    assert_eq!(admitted, 100);
}

#[test]
fn a_second_session_takes_the_place_of_the_first() {
    let mut cluster = Cluster::new(options(Some(2), None));
    let (first, _) = cluster.join(&info("w1", 1, 10));
    let (second, effects) = cluster.join(&info("w1", 1, 10));
    assert!(matches!(&effects[0], Effect::EndSession { session, .. } if *session == first));
    assert!(matches!(&effects[1], Effect::Admit { session } if *session == second));
    // What the first still says does not count.
    let version = cluster.state.clone();
    let worker = name("w1");
    cluster.run(Event::Ended {
        session: first,
        worker,
    });
    assert_eq!(cluster.state, version);
    assert!(
        cluster
            .controller
            .status(&cluster.state)
            .nodes
            .iter()
            .any(|node| node.state == "joined")
    );
}

#[test]
fn another_incarnation_breaks_what_the_first_held() {
    let mut cluster = Cluster::new(options(None, None));
    let (first, _) = cluster.join(&info("w1", 1, ENOUGH));
    cluster.all_ready(1);
    assert_eq!(cluster.phase(), Some(("serving", 1)));
    let (second, effects) = cluster.join(&info("w1", 2, ENOUGH));
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::EndSession { session, .. } if *session == first)),
        "{effects:?}"
    );
    assert_eq!(cluster.phase(), Some(("loading", 2)));
    assert_eq!(assigned(&effects), [(second, fence(2))]);
}

#[test]
fn a_worker_that_comes_back_hears_its_assignment_again() {
    let mut cluster = Cluster::new(options(Some(2), None));
    cluster.join_all(&["w1", "w2"]);
    cluster.all_ready(1);
    let (session, effects) = cluster.join(&info("w1", 1, ENOUGH));
    assert_eq!(assigned(&effects), [(session, fence(1))]);
    let Some(Effect::Direct {
        directive: Directive::Assign { peers, .. },
        ..
    }) = effects.last()
    else {
        panic!("{effects:?}");
    };
    let expected = [("w1", "w1:1"), ("w2", "w2:1")].map(|(worker, at)| (name(worker), at.to_owned()));
    assert_eq!(*peers, BTreeMap::from(expected));
    assert_eq!(cluster.phase(), Some(("serving", 1)));
}
