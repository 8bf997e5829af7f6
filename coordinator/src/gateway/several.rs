//! Requests to two replicas with heads in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tramontane_model::ids::{Fence, Generation as ReplicaGeneration, Origin, ReplicaId};
use tramontane_model::members::SchedulerLoad;
use tramontane_model::sampling::SamplingParams;
use tramontane_proto::Ended;

use super::head::HeadError;
use super::scripted::{Act, ScriptedHeads, always, both};
use super::*;
use crate::config::RoutingPolicy;

const SCRIPT: [u32; 4] = [10, 11, 12, 2];

struct World {
    heads: Arc<ScriptedHeads>,
    routes: watch::Sender<Arc<Routes>>,
    gateway: Gateway,
}

fn world(acts: impl IntoIterator<Item = Act>, routing: RoutingConfig) -> World {
    let heads = ScriptedHeads::new(always(&SCRIPT), acts);
    let (routes, followed) = watch::channel(Arc::new(both([true, true])));
    let options = GatewayOptions {
        routing,
        block_tokens: 2,
        ..GatewayOptions::default()
    };
    let gateway = Gateway::new(followed, heads.clone(), options);
    World {
        heads,
        routes,
        gateway,
    }
}

fn by(policy: RoutingPolicy, max_imbalance: u32) -> RoutingConfig {
    RoutingConfig {
        policy,
        max_imbalance,
    }
}

fn request(prompt: &[u32], together: &Together) -> NewRequest {
    NewRequest {
        id: random_id().unwrap(),
        prompt: prompt.into(),
        sampling: SamplingParams::GREEDY,
        max_tokens: 20,
        stop_tokens: vec![2],
        priority: 0,
        cache_salt: Vec::new(),
        trace: Origin::NOBODY.trace,
        together: together.clone(),
    }
}

impl World {
    async fn submit(&self, prompt: &[u32], together: &Together) -> Result<Generation, GatewayError> {
        let permit = self.gateway.admit_one()?;
        let deadline = Instant::now() + Duration::from_secs(60);
        self.gateway
            .submit(permit, request(prompt, together), deadline)
            .await
    }

    /// Asks and waits for the end; the tokens.
    async fn ask(&self, prompt: &[u32]) -> Result<Vec<u32>, GatewayError> {
        let mut generation = self.submit(prompt, &Together::default()).await?;
        let mut tokens = Vec::new();
        loop {
            match generation.next().await {
                Some(Event::Token(token)) => tokens.push(token.token),
                Some(Event::Prompt(scored)) => panic!("nobody asked for {scored:?}"),
                Some(Event::Ended(Ok(_))) => return Ok(tokens),
                Some(Event::Ended(Err(error))) => return Err(error),
                None => panic!("no end came"),
            }
        }
    }

    /// Lets the gateway hear the leader as often as it takes to forget its own requests of before: reports may still
    /// count them.
    fn forget(&self) {
        self.gateway.heard(&[]);
        self.gateway.heard(&[]);
    }

    /// Which head each attempt went to.
    fn heads(&self) -> Vec<String> {
        let seen = self.heads.seen().into_iter();
        seen.map(|(address, _)| address).collect()
    }
}

fn full() -> Act {
    Act::Refuse(HeadError::QueueFull {
        address: "w:7000".to_owned(),
        detail: "8 of 8 wait".to_owned(),
    })
}

#[tokio::test(start_paused = true)]
async fn requests_follow_their_prefixes() {
    let world = world([], RoutingConfig::default());
    let mut first = BTreeMap::new();
    for round in 0..3 {
        for group in 0..16_u32 {
            world
                .ask(&[100 + group, 1, 2, 3, 4, 5, 1000 + round, 7])
                .await
                .unwrap();
            let head = world.heads().last().unwrap().clone();
            assert_eq!(*first.entry(group).or_insert(head.clone()), head, "group {group}");
        }
    }
    let to_first = first.values().filter(|head| *head == "w1:7000").count();
    assert!(
        (4..=12).contains(&to_first),
        "{to_first} of 16 prefixes on one of two"
    );
}

#[tokio::test(start_paused = true)]
async fn round_robin_takes_turns_whatever_the_prompt() {
    let world = world([], by(RoutingPolicy::RoundRobin, 0));
    for _ in 0..6 {
        world.ask(&[1, 2, 3, 4]).await.unwrap();
    }
    let heads = world.heads();
    assert_ne!(heads[0], heads[1]);
    assert!(
        heads.iter().zip(&heads[2..]).all(|(one, next)| one == next),
        "{heads:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_other_gateways_have_given_counts() {
    let world = world([], by(RoutingPolicy::Prefix, 4));
    let load = |replica, running, waiting| SchedulerLoad {
        fence: Fence {
            replica: ReplicaId(replica),
            generation: ReplicaGeneration(1),
        },
        running,
        waiting,
        kv_blocks_used: 0,
        kv_blocks_total: 100,
    };
    for (loads, expected) in [
        ([load(1, 1, 2), load(2, 2, 0)], "w2:7000"),
        ([load(1, 1, 0), load(2, 1, 1)], "w1:7000"),
    ] {
        world.forget();
        world.gateway.heard(&loads);
        for first in 0..5 {
            world.ask(&[100 * loads[0].waiting + first, 3, 4]).await.unwrap();
            assert_eq!(world.heads().last().unwrap(), expected);
        }
    }
    // The holder of a prefix keeps it up to the bound.
    let prompt = [50, 51, 52, 53];
    world.forget();
    world.gateway.heard(&[load(1, 0, 0), load(2, 9, 0)]);
    world.ask(&prompt).await.unwrap();
    for (ahead, expected) in [(4, "w1:7000"), (5, "w2:7000")] {
        world.forget();
        world.gateway.heard(&[load(1, ahead, 0), load(2, 0, 0)]);
        world.ask(&prompt).await.unwrap();
        assert_eq!(world.heads().last().unwrap(), expected, "{ahead} ahead");
    }
}

#[tokio::test(start_paused = true)]
async fn own_requests_are_not_counted_twice() {
    let world = world([Act::HangAfter(1)], by(RoutingPolicy::Prefix, 0));
    let mut open = world.submit(&[1, 2], &Together::default()).await.unwrap();
    assert!(matches!(open.next().await, Some(Event::Token(_))));
    let head = world.heads()[0].clone();
    let replica = if head == "w1:7000" { 1 } else { 2 };
    let reported = |running| SchedulerLoad {
        fence: Fence {
            replica: ReplicaId(replica),
            generation: ReplicaGeneration(1),
        },
        running,
        waiting: 0,
        kv_blocks_used: 0,
        kv_blocks_total: 100,
    };
    world.gateway.heard(&[reported(1)]);
    drop(open);
    let mut closed = world.heads.open();
    closed.wait_for(|open| *open == 0).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    // A report that is still of then does not count what has ended as somebody else's.
    world.gateway.heard(&[reported(1)]);
    world.ask(&[1, 2]).await.unwrap();
    assert_eq!(*world.heads().last().unwrap(), head);
}

#[tokio::test(start_paused = true)]
async fn the_choices_of_one_prompt_stay_together() {
    for policy in [RoutingPolicy::Prefix, RoutingPolicy::RoundRobin] {
        let world = world(std::iter::repeat_n(Act::HangAfter(1), 9), by(policy, 0));
        let together = Together::default();
        let mut open = Vec::new();
        for _ in 0..8 {
            open.push(world.submit(&[1, 2, 3, 4], &together).await.unwrap());
        }
        let heads = world.heads();
        assert!(heads.iter().all(|head| *head == heads[0]), "{heads:?}");
        open.push(world.submit(&[1, 2, 3, 4], &Together::default()).await.unwrap());
        assert_ne!(
            world.heads()[8],
            heads[0],
            "another request goes where there is less to do"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_replica_is_passed_over_and_two_are_too_many() {
    let world = world([full(), Act::Answer, full(), full()], RoutingConfig::default());
    assert_eq!(world.ask(&[1, 2, 3]).await.unwrap(), SCRIPT);
    let heads = world.heads();
    assert_eq!(heads.len(), 2);
    assert_ne!(heads[0], heads[1]);
    let refused = world.ask(&[1, 2, 3]).await.unwrap_err();
    let detail = "8 of 8 wait".to_owned();
    assert_eq!(refused, GatewayError::QueueFull { detail });
    let heads = world.heads();
    assert_eq!(heads.len(), 4);
    assert_ne!(heads[2], heads[3]);
}

#[tokio::test(start_paused = true)]
async fn after_a_loss_the_other_replica_goes_on_at_once() {
    let failed = Act::EndAfter(2, Ended::Failed("stage 1 is gone".to_owned()));
    for broken in [Act::BreakAfter(2), failed] {
        let world = world([broken], RoutingConfig::default());
        let began = Instant::now();
        assert_eq!(world.ask(&[1, 2, 3]).await.unwrap(), SCRIPT);
        assert_eq!(began.elapsed(), Duration::ZERO, "nothing was waited for");
        let seen = world.heads.seen();
        assert_ne!(seen[0].0, seen[1].0);
        assert_eq!(seen[1].1.emitted, SCRIPT[..2]);
        let lost = seen[0].0.clone();
        // Until the cluster has noticed, new requests keep away from it.
        for first in 0..20 {
            world.ask(&[first, 9, 9]).await.unwrap();
            assert_ne!(*world.heads().last().unwrap(), lost);
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        for first in 100..120 {
            world.ask(&[first, 9, 9]).await.unwrap();
        }
        assert!(world.heads()[22..].contains(&lost));
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_serves_no_more_is_left_for_the_other() {
    let world = world([Act::HangAfter(1)], RoutingConfig::default());
    let mut generation = world.submit(&[1, 2, 3], &Together::default()).await.unwrap();
    assert!(matches!(generation.next().await, Some(Event::Token(_))));
    let first = world.heads()[0] == "w1:7000";
    world.routes.send_replace(Arc::new(both([!first, first])));
    let mut left = Vec::new();
    while let Some(Event::Token(token)) = generation.next().await {
        left.push(token.token);
    }
    assert_eq!(left, SCRIPT[1..]);
    let heads = world.heads();
    assert_ne!(heads[0], heads[1]);
    // Its cache is gone with its generation: the prompt belongs to the other now.
    world.routes.send_replace(Arc::new(both([true, true])));
    world.ask(&[1, 2, 3]).await.unwrap();
    assert_eq!(world.heads()[2], heads[1]);
}
