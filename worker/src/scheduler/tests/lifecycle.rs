//! How requests begin and end: stop tokens, lengths, attempts, deadlines, the last stage's closes, a lost replica.

use std::sync::Arc;

use tramontane_model::ids::{RequestId, SequenceId, StepId};
use tramontane_model::sampling::SamplingParams;
use tramontane_model::step::{StepResult, Unsampled};
use tramontane_model::time::Tick;

use super::pipeline::{alone, prompt_cells};
use super::world::World;
use super::{config, prompt, submission};
use crate::scheduler::{EndReason, ProtocolError, Refusal, SchedulerConfig};

fn world() -> World {
    World::new(config(), 1)
}

/// What these tests' prompt gives alone.
fn greedy(max_tokens: usize) -> Vec<u32> {
    alone(
        1,
        50,
        &prompt_cells(&prompt(5), 0),
        &SamplingParams::GREEDY,
        max_tokens,
        None,
    )
}

#[test]
fn a_stop_token_is_emitted_and_ends_the_sequence_unless_it_is_ignored() {
    let tokens = greedy(30);
    let stop = tokens[7];
    let first = tokens
        .iter()
        .position(|&token| token == stop)
        .expect("it is there");
    for (ignore_eos, emitted, reason) in [(false, first + 1, EndReason::Stop), (true, 30, EndReason::Length)]
    {
        let mut world = world();
        let mut stopping = submission(1, &prompt(5), 30);
        stopping.stop_tokens = vec![stop];
        stopping.ignore_eos = ignore_eos;
        world.submit(stopping).expect("accepted");
        while !world.turn().is_empty() {}
        let client = &world.clients[&RequestId(1)];
        assert_eq!(
            (&client.tokens[..], &client.ended),
            (&tokens[..emitted], &Some(reason))
        );
    }
}

#[test]
fn a_sequence_ends_at_the_last_position_of_the_model() {
    let config = SchedulerConfig {
        max_positions: 20,
        ..config()
    };
    let mut world = World::new(config, 1);
    world.submit(submission(1, &prompt(5), 1000)).expect("accepted");
    world.submit(submission(2, &prompt(19), 1000)).expect("accepted");
    world.finish();
    for (request, emitted) in [(1, 15), (2, 1)] {
        let client = &world.clients[&RequestId(request)];
        assert_eq!(
            (client.tokens.len(), &client.ended),
            (emitted, &Some(EndReason::Length))
        );
    }
}

#[test]
fn what_was_complete_ends_at_once() {
    let tokens = greedy(6);
    let stopped = |attempt| {
        let mut stopped = submission(1, &prompt(5), 30);
        stopped.attempt = attempt;
        stopped.emitted = tokens.clone();
        stopped.stop_tokens = vec![tokens[5]];
        stopped.ignore_eos = false;
        stopped
    };
    let mut world = world();
    world.submit(stopped(1)).expect("accepted");
    assert_eq!(world.clients[&RequestId(1)].ended, Some(EndReason::Stop));
    let mut long = stopped(2);
    (long.ignore_eos, long.max_tokens) = (true, 6);
    world.submit(long).expect("accepted");
    assert_eq!(world.clients[&RequestId(1)].ended, Some(EndReason::Length));
    assert!(world.compose().is_none());
}

#[test]
fn a_later_attempt_replaces_an_earlier_one() {
    let mut world = world();
    world.submit(submission(1, &prompt(5), 10)).expect("accepted");
    for _ in 0..3 {
        world.turn();
    }
    let again = |attempt| {
        let mut again = submission(1, &prompt(5), 10);
        again.attempt = attempt;
        again.emitted = greedy(3);
        again
    };
    let (request, live) = (RequestId(1), 1);
    assert_eq!(
        world.submit(again(1)),
        Err(Refusal::Duplicate {
            request,
            attempt: live
        })
    );
    assert_eq!(
        world.submit(again(0)),
        Err(Refusal::Superseded {
            request,
            attempt: 0,
            live
        })
    );
    world.compose();
    world.submit(again(2)).expect("accepted");
    assert!(!world.cancel(request, 1), "the earlier attempt has ended");
    world.finish();
    assert_eq!(world.clients[&request].tokens, greedy(10));
}

#[test]
fn a_later_attempt_takes_the_place_of_an_earlier_one_in_a_full_queue() {
    let config = SchedulerConfig {
        max_waiting: 1,
        ..config()
    };
    let mut world = World::new(config, 1);
    world.submit(submission(1, &prompt(5), 2)).expect("accepted");
    let full = Refusal::QueueFull { waiting: 1, limit: 1 };
    assert_eq!(world.submit(submission(2, &prompt(5), 2)), Err(full));
    world.resubmit(RequestId(1)).expect("accepted");
    world.finish();
}

#[test]
fn a_deadline_ends_a_request_that_waits_and_one_that_runs() {
    let config = SchedulerConfig {
        max_sequences: 1,
        ..config()
    };
    let mut world = World::new(config, 1);
    for (request, deadline) in [(1, 200), (2, 100), (3, 300)] {
        let mut timed = submission(request, &prompt(5), 50);
        timed.deadline = Tick(deadline);
        world.submit(timed).expect("accepted");
    }
    world.turn();
    assert_eq!(world.scheduler.next_deadline(), Some(Tick(100)));
    world.elapse(99);
    assert!(world.clients.values().all(|client| client.ended.is_none()));
    world.elapse(1);
    assert_eq!(
        world.clients[&RequestId(2)].ended,
        Some(EndReason::DeadlineExceeded)
    );
    world.compose();
    world.elapse(100);
    let first = &world.clients[&RequestId(1)];
    assert_eq!(
        (first.tokens.len(), &first.ended),
        (1, &Some(EndReason::DeadlineExceeded)),
        "the token in flight is dropped"
    );
    assert_eq!(world.scheduler.next_deadline(), Some(Tick(300)));
    world.finish();
    assert_eq!(world.clients[&RequestId(3)].ended, Some(EndReason::Length));
}

#[test]
fn closes_ride_on_the_next_step_or_go_alone_when_nothing_else_is_left() {
    let mut world = World::new(
        SchedulerConfig {
            steps_in_flight: 2,
            ..config()
        },
        2,
    );
    world.submit(submission(1, &[1], 1)).expect("accepted");
    world.submit(submission(2, &[1], 2)).expect("accepted");
    let first = world.turn();
    assert_eq!(first.len(), 2, "one sequence in each step");
    assert!(
        world.compose().is_none(),
        "sequence 0 has ended, a step is in flight: no step for its close alone"
    );
    assert!(world.complete());
    let next = world.compose().expect("a step");
    assert_eq!((next.rows(), &next.closed[..]), (1, &[SequenceId(0)][..]));
    assert!(world.compose().is_none());
    world.pipeline.run_all();
    assert!(world.complete());
    let last = world.compose().expect("a step");
    assert_eq!((last.rows(), &last.closed[..]), (0, &[SequenceId(1)][..]));
    world.finish();
}

#[test]
fn a_lost_replica_ends_every_request_and_takes_no_other() {
    let mut world = world();
    for request in 1..=20 {
        let full = world.submit(submission(request, &prompt(20), 5));
        assert_eq!(full.is_err(), request > 16);
    }
    world.compose();
    world.cancel(RequestId(1), 1);
    world.pipeline.run_all();
    world.fail("stage 1 was lost");
    let why = EndReason::Failed("stage 1 was lost".into());
    for (&request, client) in &world.clients {
        let cancelled = request == RequestId(1);
        let expected = if cancelled {
            EndReason::Cancelled
        } else {
            why.clone()
        };
        assert_eq!(client.ended, Some(expected));
    }
    assert_eq!(world.scheduler.stats().kv_blocks_used, 0);
    assert!(world.compose().is_none());
    let refused = world.submit(submission(30, &prompt(5), 5));
    assert_eq!(refused, Err(Refusal::Failed("stage 1 was lost".into())));
    let late = world.pipeline.results.pop_front().expect("a result");
    let refused = world.scheduler.complete(late, &mut vec![]);
    assert_eq!(refused, Err(ProtocolError::NothingInFlight(StepId(0))));
}

#[test]
fn a_result_without_a_step_is_refused() {
    let mut world = world();
    let result = StepResult {
        fence: config().fence,
        step: StepId(0),
        tokens: vec![],
        scored: vec![],
        unsampled: vec![],
    };
    let refused = world.scheduler.complete(result, &mut vec![]);
    assert_eq!(refused, Err(ProtocolError::NothingInFlight(StepId(0))));
}

#[test]
fn a_sequence_that_can_have_no_token_ends_and_the_others_go_on() {
    let mut world = world();
    for request in [1, 2, 3] {
        world
            .submit(submission(request, &prompt(5), 4))
            .expect("accepted");
    }
    world.compose_all();
    world.pipeline.run_all();
    let result = world.pipeline.results.front_mut().expect("a result");
    let sampled: Vec<SequenceId> = result.tokens.iter().map(|(sequence, _)| *sequence).collect();
    let unsampled = |sequence, passing| Unsampled {
        sequence,
        reason: "no token can come next".to_owned(),
        passing,
    };
    result.unsampled = vec![unsampled(SequenceId(77), true)];
    let wrong = world.scheduler.complete(result.clone(), &mut vec![]);
    assert!(matches!(
        wrong,
        Err(ProtocolError::Unsampled {
            sequence: SequenceId(77),
            ..
        })
    ));
    result.unsampled = vec![unsampled(sampled[0], false)];
    world.complete();
    let why: Arc<str> = "no token can come next".into();
    let ended = |world: &World, request| world.clients[&RequestId(request)].ended.clone();
    assert_eq!(ended(&world, 1), Some(EndReason::Grammar(Arc::clone(&why))));
    assert!(world.clients[&RequestId(1)].tokens.is_empty());

    world.compose_all();
    world.pipeline.run_all();
    let result = world.pipeline.results.front_mut().expect("a result");
    let second = result.tokens[0].0;
    result.unsampled = vec![unsampled(second, true)];
    world.complete();
    let failed = [2, 3].map(|request| ended(&world, request));
    assert!(failed.contains(&Some(EndReason::Failed(why))), "{failed:?}");
    world.finish();
}
