//! Whole requests against heads in memory.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tramontane_model::ids::Origin;
use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_proto::{Ended, Progress};

use super::head::HeadError;
use super::scripted::{
    Act, CACHED_PROMPT_TOKENS, ScriptedHeads, always, fence, loading, sampled, serving, unplaceable, update,
};
use super::*;

const SCRIPT: [u32; 8] = [10, 11, 12, 13, 14, 15, 16, 2];
const EOS: u32 = 2;
/// Virtual time: beyond every deadline here.
const LATE: Duration = Duration::from_secs(10_000);

struct World {
    heads: Arc<ScriptedHeads>,
    routes: watch::Sender<Arc<Routes>>,
    gateway: Gateway,
}

fn world(acts: impl IntoIterator<Item = Act>) -> World {
    world_with(acts, GatewayOptions::default())
}

fn world_with(acts: impl IntoIterator<Item = Act>, options: GatewayOptions) -> World {
    let heads = ScriptedHeads::new(always(&SCRIPT), acts);
    let (routes, routes_rx) = watch::channel(Arc::new(serving(1)));
    let gateway = Gateway::new(routes_rx, heads.clone(), options);
    World {
        heads,
        routes,
        gateway,
    }
}

fn request(max_tokens: u32) -> NewRequest {
    NewRequest {
        id: random_id().unwrap(),
        prompt: [1, 5, 6].into(),
        sampling: SamplingParams::GREEDY,
        max_tokens,
        stop_tokens: vec![EOS],
        priority: 7,
        cache_salt: vec![9],
        trace: Origin::NOBODY.trace,
        together: Together::default(),
    }
}

impl World {
    async fn submit(&self, request: NewRequest) -> Result<Generation, GatewayError> {
        let permit = self.gateway.admit_one()?;
        let deadline = Instant::now() + self.gateway.options().request_timeout;
        self.gateway.submit(permit, request, deadline).await
    }

    async fn all_closed(&self) {
        let mut open = self.heads.open();
        timeout(LATE, open.wait_for(|open| *open == 0))
            .await
            .unwrap()
            .unwrap();
    }
}

async fn collect(mut generation: Generation) -> (Vec<SampledToken>, Result<Finish, GatewayError>) {
    let mut tokens = Vec::new();
    loop {
        match timeout(LATE, generation.next()).await.expect("an event in time") {
            Some(Event::Token(token)) => tokens.push(token),
            Some(Event::Prompt(scored)) => panic!("nobody asked for {scored:?}"),
            Some(Event::Ended(result)) => {
                assert_eq!(generation.next().await, None, "something followed the end");
                return (tokens, result);
            }
            None => panic!("no end came"),
        }
    }
}

fn script() -> Vec<SampledToken> {
    SCRIPT.iter().copied().map(sampled).collect()
}

fn unreachable_head() -> HeadError {
    HeadError::Unavailable {
        address: "w1:7000".to_owned(),
        detail: "connection refused".to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_ends_at_its_stop_token_or_its_length() {
    let world = world([]);
    let whole = collect(world.submit(request(20)).await.unwrap()).await;
    assert_eq!(whole, (script(), Ok(Finish::Stop)));
    let cut = collect(world.submit(request(3)).await.unwrap()).await;
    assert_eq!(cut, (script()[..3].to_vec(), Ok(Finish::Length)));

    let seen = world.heads.seen();
    let (address, first) = &seen[0];
    assert_eq!(address, "w1:7000");
    assert_eq!((first.fence, first.attempt), (fence(1), 1));
    assert_eq!(
        (first.prompt.as_slice(), first.emitted.len()),
        (&[1, 5, 6][..], 0)
    );
    assert!(
        (590_000..=600_000).contains(&first.timeout_ms),
        "{}",
        first.timeout_ms
    );
    assert_ne!(first.request, seen[1].1.request);
    world.all_closed().await;
    assert_eq!(world.gateway.admit(1024).unwrap().len(), 1024);
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_is_taken_up_at_the_next_token() {
    let acts = [
        Act::Refuse(unreachable_head()),
        Act::BreakAfter(3),
        Act::EndEarlyAfter(0),
        Act::EndAfter(1, Ended::Cancelled),
        Act::EndAfter(2, Ended::Failed("stage 1 is gone".to_owned())),
        Act::Refuse(HeadError::Fenced {
            address: "w1:7000".to_owned(),
            detail: "generation 2".to_owned(),
        }),
    ];
    let world = world(acts);
    let mut generation = world.submit(request(20)).await.unwrap();
    let mut got = Vec::new();
    while let Some(Event::Token(token)) = generation.next().await {
        got.push(token);
        let cached = generation.cached_prompt_tokens();
        assert_eq!(
            cached, CACHED_PROMPT_TOKENS,
            "what a later attempt finds does not count"
        );
    }
    assert_eq!(got, script());
    let seen = world.heads.seen();
    let carried: Vec<_> = seen
        .iter()
        .map(|(_, sent)| (sent.attempt, sent.emitted.len()))
        .collect();
    assert_eq!(carried, [(1, 0), (2, 0), (3, 3), (4, 3), (5, 4), (6, 6), (7, 6)]);
    assert_eq!(seen[6].1.emitted, SCRIPT[..6]);
    assert!(seen.iter().all(|(_, sent)| sent.request == seen[0].1.request));
}

#[tokio::test(start_paused = true)]
async fn a_prompt_is_scored_once_wherever_a_stream_breaks() {
    let prompt: Vec<u32> = (30..41).collect();
    let asks = || NewRequest {
        prompt: prompt.clone().into(),
        sampling: SamplingParams {
            prompt_logprobs: Some(1),
            ..SamplingParams::GREEDY
        },
        ..request(20)
    };
    let expected: Vec<SampledToken> = prompt[1..]
        .iter()
        .map(|&id| SampledToken {
            top: vec![sampled(id).top[0]],
            ..sampled(id)
        })
        .collect();
    for broken in 0..8 {
        let world = world([Act::BreakAfter(broken), Act::BreakAfter(3)]);
        let mut generation = world.submit(asks()).await.unwrap();
        let (mut scored, mut tokens) = (Vec::new(), Vec::new());
        let end = loop {
            match generation.next().await.unwrap() {
                Event::Prompt(piece) => {
                    assert!(tokens.is_empty() && !piece.is_empty());
                    scored.extend(piece);
                }
                Event::Token(token) => tokens.push(token),
                Event::Ended(end) => break end,
            }
        };
        assert_eq!(
            (scored, tokens, end),
            (expected.clone(), script(), Ok(Finish::Stop))
        );
        let asked = |(_, sent): &(_, tramontane_proto::GenerateSubmission)| sent.sampling.prompt_logprobs;
        let asked: Vec<Option<u32>> = world.heads.seen().iter().map(asked).collect();
        // The pieces are five.
        let again = (broken < 5).then_some(1);
        assert_eq!(asked[..2], [Some(1), again], "broken after {broken}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_generation_is_waited_for() {
    let world = world([Act::HangAfter(4)]);
    let mut generation = world.submit(request(20)).await.unwrap();
    let mut tokens = Vec::new();
    for _ in 0..4 {
        match generation.next().await {
            Some(Event::Token(token)) => tokens.push(token),
            other => panic!("{other:?}"),
        }
    }
    // The head hangs, cut off without knowing it; the map moves on, first to nothing that serves.
    world.routes.send_replace(Arc::new(loading(2)));
    world.all_closed().await;
    world.routes.send_replace(Arc::new(unplaceable()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.heads.seen().len(), 1);
    world.routes.send_replace(Arc::new(serving(3)));
    let (rest, end) = collect(generation).await;
    tokens.extend(rest);
    assert_eq!((tokens, end), (script(), Ok(Finish::Stop)));
    let (address, again) = &world.heads.seen()[1];
    assert_eq!((address.as_str(), again.fence), ("w3:7000", fence(3)));
    assert!(again.timeout_ms <= 540_000, "{}", again.timeout_ms);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_replica_is_refused_with_the_reason() {
    let world = world([]);
    for (routes, message) in [
        (
            loading(2),
            "no replica serves: replica 1 generation 2 is loading, 25 of 100 bytes so far",
        ),
        (
            unplaceable(),
            "no replica serves: the model needs 1000 bytes more than all devices have",
        ),
        (
            Routes::unknown(),
            "no replica serves: this coordinator has not heard from the cluster yet",
        ),
    ] {
        world.routes.send_replace(Arc::new(routes));
        let error = world.submit(request(5)).await.unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(world.gateway.readiness().unwrap_err().to_string(), message);
    }
    assert!(world.heads.seen().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_no_head_has_seen_waits_for_a_load_but_not_for_bytes() {
    let refused = || Act::Refuse(unreachable_head());
    let waiting = world([refused()]);
    let routes = waiting.routes.clone();
    let helper = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        routes.send_replace(Arc::new(loading(2)));
        tokio::time::sleep(Duration::from_secs(30)).await;
        routes.send_replace(Arc::new(serving(2)));
    });
    let got = collect(waiting.submit(request(20)).await.unwrap()).await;
    assert_eq!(got, (script(), Ok(Finish::Stop)));
    helper.await.unwrap();

    let hopeless = world([refused()]);
    let routes = hopeless.routes.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        routes.send_replace(Arc::new(unplaceable()));
    });
    let error = hopeless.submit(request(20)).await.unwrap_err();
    assert!(matches!(
        error,
        GatewayError::NotServing(NotServing::Unplaceable { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_no_retry_heals_is_told_at_once() {
    let full = HeadError::QueueFull {
        address: "w1:7000".to_owned(),
        detail: "8 of 8 wait".to_owned(),
    };
    let rejected = HeadError::Rejected {
        address: "w1:7000".to_owned(),
        detail: "prompt is too long".to_owned(),
    };
    let world = world([Act::Refuse(full.clone()), Act::Refuse(rejected)]);
    assert_eq!(
        world.submit(request(5)).await.unwrap_err(),
        GatewayError::QueueFull {
            detail: "8 of 8 wait".to_owned()
        }
    );
    assert_eq!(
        world.submit(request(5)).await.unwrap_err(),
        GatewayError::Rejected {
            detail: "prompt is too long".to_owned()
        }
    );
    assert_eq!(world.heads.seen().len(), 2);

    // A request that was taken in once is not sent away for a full queue.
    let taken_in = self::world([Act::BreakAfter(2), Act::Refuse(full)]);
    let got = collect(taken_in.submit(request(20)).await.unwrap()).await;
    assert_eq!(got, (script(), Ok(Finish::Stop)));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_fails_without_end_is_given_up() {
    let failing = std::iter::repeat_n(
        Act::EndAfter(0, Ended::Failed("logits are not numbers".to_owned())),
        40,
    );
    let world = world(failing);
    let (tokens, end) = collect(world.submit(request(20)).await.unwrap()).await;
    assert!(tokens.is_empty());
    let message = end.unwrap_err().to_string();
    assert_eq!(
        message,
        "16 attempts in a row failed without a new token, the last one because: logits are not numbers"
    );
    assert_eq!(world.heads.seen().len(), 16);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_a_request_in_every_state() {
    let limit = GatewayError::Deadline {
        limit: Duration::from_secs(600),
    };
    // A head that hangs.
    let hanging = world([Act::HangAfter(2)]);
    let (tokens, end) = collect(hanging.submit(request(20)).await.unwrap()).await;
    assert_eq!((tokens.len(), end), (2, Err(limit.clone())));
    hanging.all_closed().await;
    // A head that is never reached.
    let unreached = world(std::iter::repeat_n(Act::Refuse(unreachable_head()), 10_000));
    assert_eq!(unreached.submit(request(20)).await.unwrap_err(), limit);
    // A head that says so itself.
    let told = world([Act::EndAfter(1, Ended::Deadline)]);
    let (_, end) = collect(told.submit(request(20)).await.unwrap()).await;
    assert_eq!(end, Err(limit.clone()));
    // A client that does not read.
    let options = GatewayOptions {
        queued_tokens: 2,
        ..GatewayOptions::default()
    };
    let unread = world_with([], options);
    let generation = unread.submit(request(20)).await.unwrap();
    unread.all_closed().await;
    let (tokens, end) = collect(generation).await;
    assert_eq!((tokens, end), (script()[..2].to_vec(), Err(limit)));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_cancels_at_the_head_and_gives_its_room_back() {
    let options = GatewayOptions {
        max_live_requests: 1,
        ..GatewayOptions::default()
    };
    let world = world_with([Act::HangAfter(1), Act::HangAfter(0)], options);
    let mut generation = world.submit(request(20)).await.unwrap();
    assert_eq!(generation.next().await, Some(Event::Token(sampled(10))));
    assert_eq!(
        world.submit(request(5)).await.unwrap_err(),
        GatewayError::Overloaded { asked: 1, limit: 1 }
    );
    drop(generation);
    world.all_closed().await;
    timeout(LATE, async {
        while world.gateway.admit(1).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the room comes back");
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_slows_itself_only() {
    let options = GatewayOptions {
        queued_tokens: 1,
        ..GatewayOptions::default()
    };
    let world = world_with([], options);
    let slow = world.submit(request(20)).await.unwrap();
    for _ in 0..20 {
        let quick = collect(world.submit(request(20)).await.unwrap()).await;
        assert_eq!(quick, (script(), Ok(Finish::Stop)));
    }
    assert_eq!(collect(slow).await, (script(), Ok(Finish::Stop)));
}

#[tokio::test(start_paused = true)]
async fn updates_of_another_attempt_or_generation_are_dropped_and_faults_end_the_attempt() {
    let probe = world([]);
    let (first, _) = collect(probe.submit(request(1)).await.unwrap()).await;
    assert_eq!(first, [sampled(10)]);
    let mut submission = probe.heads.seen()[0].1.clone();
    let token = |index, token| Progress::Token {
        index,
        token: sampled(token),
        cached_prompt_tokens: None,
        queued_us: None,
    };
    let good = update(&submission, token(0, 10));
    submission.attempt = 0;
    let older = update(&submission, token(1, 99));
    submission.attempt = 1;
    submission.fence = fence(7);
    let elsewhere = update(&submission, Progress::Ended(Ended::Stop));
    submission.fence = fence(1);
    let gap = update(&submission, token(5, 98));
    let world = world([Act::Raw(vec![good, older, elsewhere, gap])]);
    let got = collect(world.submit(request(20)).await.unwrap()).await;
    assert_eq!(got, (script(), Ok(Finish::Stop)));
    assert_eq!(world.heads.seen()[1].1.emitted, [10]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_after_the_last_token_needs_no_other_attempt() {
    let world = world([Act::BreakAfter(8), Act::BreakAfter(3)]);
    let stopped = collect(world.submit(request(20)).await.unwrap()).await;
    assert_eq!(stopped, (script(), Ok(Finish::Stop)));
    let cut = collect(world.submit(request(3)).await.unwrap()).await;
    assert_eq!(cut, (script()[..3].to_vec(), Ok(Finish::Length)));
    assert_eq!(world.heads.seen().len(), 2);
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        (0..9usize).prop_map(Act::BreakAfter),
        (0..9usize).prop_map(Act::EndEarlyAfter),
        (0..9usize).prop_map(|count| Act::EndAfter(count, Ended::Cancelled)),
        (0..9usize).prop_map(|count| Act::EndAfter(count, Ended::Failed("lost".to_owned()))),
        Just(Act::Refuse(unreachable_head())),
    ];
    prop::collection::vec(act, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever breaks, and wherever: the client sees the tokens of the run in which nothing did.
    #[test]
    fn faults_change_nothing_that_the_client_sees(acts in acts(), max_tokens in 1..10u32) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (faulty, clean) = runtime.block_on(async {
            let faulty = collect(world(acts).submit(request(max_tokens)).await.unwrap()).await;
            let clean = collect(world([]).submit(request(max_tokens)).await.unwrap()).await;
            (faulty, clean)
        });
        prop_assert_eq!(faulty, clean);
    }
}
