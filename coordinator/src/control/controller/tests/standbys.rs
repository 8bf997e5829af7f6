//! Copies in spare memory: who is told to keep what, and what becomes of them.

use tramontane_model::standby::Share;

use super::*;

/// What a session was told last to keep, if it was told anything.
fn told(effects: &[Effect], session: SessionId) -> Option<Vec<Share>> {
    let own = directives(effects).filter(|(to, _)| *to == session);
    let copies = own.filter_map(|(_, directive)| match directive {
        Directive::StandBy(copies) => Some(copies.values().flatten().copied().collect()),
        Directive::Assign { .. }
        | Directive::Release(_)
        | Directive::Welcome { .. }
        | Directive::Leave { .. } => None,
    });
    copies.last()
}

fn with_standbys(stages: u32) -> ControllerOptions {
    ControllerOptions {
        standbys: true,
        ..options(Some(stages), Some(1))
    }
}

/// Shares of the placement, in its order.
fn shares(cluster: &Cluster) -> Vec<Share> {
    cluster
        .placement()
        .unwrap()
        .places()
        .map(|place| place.share)
        .collect()
}

/// Two stages on w1 and w2 that serve, and w3.
fn served() -> (Cluster, Vec<Effect>) {
    let mut cluster = Cluster::new(with_standbys(2));
    cluster.join_all(&["w1", "w2", "w3"]);
    let fence = fence(1);
    cluster.report("w1", DeviceState::Ready { fence });
    let effects = cluster.report("w2", DeviceState::Ready { fence });
    assert_eq!(cluster.phase(), Some(("serving", 1)));
    (cluster, effects)
}

#[test]
fn a_worker_that_computes_nothing_keeps_copies_and_takes_the_place_of_the_lost() {
    let (mut cluster, effects) = served();
    let all = shares(&cluster);
    assert_eq!(told(&effects, cluster.sessions[&name("w3")]), Some(all.clone()));
    assert_eq!(cluster.state.replicas.len(), 1);

    let (worker, session) = (name("w2"), cluster.sessions[&name("w2")]);
    cluster.pass(LEASE, &["w1", "w2", "w3"]);
    cluster.run(Event::Ended { session, worker });
    let effects = cluster.run(Event::Gone {
        worker: name("w2"),
        incarnation: 1,
    });
    let owners: Vec<String> = cluster
        .placement()
        .unwrap()
        .places()
        .map(|place| place.device.to_string())
        .collect();
    assert_eq!(
        (cluster.phase(), owners),
        (Some(("loading", 2)), vec!["w1/0".to_owned(), "w3/0".to_owned()])
    );
    assert_eq!(shares(&cluster), all);
    // Told to compute with it first, and only then to keep it as a copy no more.
    let session = cluster.sessions[&name("w3")];
    let order: Vec<&str> = directives(&effects)
        .filter(|(to, _)| *to == session)
        .map(|(_, directive)| match directive {
            Directive::Assign { .. } => "assign",
            Directive::StandBy(_) => "stand by",
            Directive::Release(_) => "release",
            Directive::Welcome { .. } => "welcome",
            Directive::Leave { .. } => "leave",
        })
        .collect();
    assert_eq!(order, ["assign", "stand by"]);
    assert_eq!(told(&effects, session), Some(vec![all[0]]));
}

#[test]
fn a_worker_that_joins_late_stands_by_and_nothing_that_serves_is_told_anything() {
    let mut cluster = Cluster::new(with_standbys(2));
    cluster.join_all(&["w1", "w2"]);
    cluster.all_ready(1);
    // While more may come, those that compute are given nothing to load.
    assert_eq!(cluster.state.standbys, []);
    let (session, effects) = cluster.join(&info("w3", 1, ENOUGH));
    assert_eq!(cluster.phase(), Some(("serving", 1)));
    assert_eq!(told(&effects, session), Some(shares(&cluster)));
    let others = directives(&effects).filter(|(to, _)| *to != session);
    assert_eq!(others.count(), 0, "{effects:?}");
    // One that joins again is told again; one that computes is not needed.
    let (session, effects) = cluster.join(&info("w3", 1, ENOUGH));
    assert_eq!(told(&effects, session), Some(shares(&cluster)));
    cluster.pass(SETTLE, &["w1", "w2", "w3"]);
    assert_eq!(cluster.state.standbys.len(), 1, "{:?}", cluster.state.standbys);
}

#[test]
fn owners_stand_by_for_each_other_once_nobody_comes() {
    let mut cluster = Cluster::new(with_standbys(2));
    cluster.join_all(&["w1", "w2"]);
    cluster.all_ready(1);
    cluster.pass(SETTLE, &["w1", "w2"]);
    let copies = |cluster: &Cluster, worker: &str| {
        let device = cluster
            .state
            .standbys
            .iter()
            .find(|one| one.device.worker == name(worker));
        device.map(|one| one.shares.clone())
    };
    let all = shares(&cluster);
    assert_eq!(copies(&cluster, "w1"), Some(vec![all[1]]));
    assert_eq!(copies(&cluster, "w2"), Some(vec![all[0]]));
    assert_eq!(cluster.phase(), Some(("serving", 1)), "without a new generation");
}

#[test]
fn copies_that_nobody_asked_for_are_given_up() {
    let mut cluster = Cluster::new(options(Some(2), Some(1)));
    let (session, _) = cluster.join(&info("w1", 1, ENOUGH));
    let mut keeps = report(DeviceState::Idle);
    keeps.devices[0].standby.total_bytes = 7;
    let reported = |cluster: &mut Cluster| {
        cluster.run(Event::Reported {
            session,
            worker: name("w1"),
            report: keeps.clone(),
        })
    };
    assert_eq!(told(&reported(&mut cluster), session), Some(Vec::new()));
    assert_eq!(told(&reported(&mut cluster), session), None, "told once");
}

#[test]
fn a_replica_that_is_wanted_takes_the_devices_of_standbys() {
    let mut options = with_standbys(2);
    options.replicas = None;
    let mut cluster = Cluster::new(options);
    cluster.join_all(&["w1", "w2", "w3"]);
    cluster.all_ready(1);
    assert_eq!(cluster.state.standbys.len(), 1);
    cluster.join(&info("w4", 1, ENOUGH));
    let second = cluster.state.replicas[&ReplicaId(2)]
        .live()
        .expect("a second one");
    let devices: Vec<String> = second.devices().into_iter().map(ToString::to_string).collect();
    assert_eq!(devices, ["w3/0", "w4/0"]);
    assert_eq!(cluster.phase(), Some(("serving", 1)));
    assert!(
        cluster.state.copies(second.devices().first().expect("w3")).len() < 2,
        "{:?}",
        cluster.state.standbys
    );
}

#[test]
fn status_tells_what_a_loss_would_cost() {
    let (mut cluster, _) = served();
    let loss = |cluster: &Cluster| {
        let status = cluster.controller.status(&cluster.state);
        status.replicas[0].worst_loss.clone().expect("it serves")
    };
    let footprint = model().footprint;
    let bytes = |share: &Share| crate::control::standby::share_bytes(&footprint, share);
    let largest = shares(&cluster).iter().map(bytes).max();
    assert_eq!(Some(loss(&cluster).read_bytes), largest, "nothing is loaded yet");
    let mut report = report(DeviceState::Idle);
    report.devices[0].standby = StandbyReport {
        loaded_bytes: 9,
        total_bytes: 9,
    };
    let (worker, session) = (name("w3"), cluster.sessions[&name("w3")]);
    cluster.run(Event::Reported {
        session,
        worker,
        report,
    });
    assert_eq!(loss(&cluster).read_bytes, 0);
    let status = cluster.controller.status(&cluster.state);
    let node = status.nodes.iter().find(|node| node.id == "w3").expect("listed");
    assert_eq!(node.devices[0].standby.len(), 2);
    assert_eq!((node.devices[0].standby_bytes, node.standby), (9, true));
}
