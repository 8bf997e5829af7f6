//! Blocks: admission, preemption, and when a block comes free.

use tramontane_model::ids::{RequestId, SequenceId};
use tramontane_model::placement::{KvFormat, KvShape};

use super::world::World;
use super::{config, prompt, submission};
use crate::scheduler::{EndReason, SchedulerConfig};

fn world(blocks: u32, steps_in_flight: usize) -> World {
    let config = SchedulerConfig {
        kv: KvShape {
            block_tokens: 4,
            blocks,
            format: KvFormat::F32,
        },
        steps_in_flight,
        ..config()
    };
    World::new(config, steps_in_flight)
}

#[test]
fn the_youngest_is_preempted_and_its_output_is_the_same() {
    let mut world = world(8, 1);
    for request in 1..=3 {
        world
            .submit(submission(request, &prompt(4), 20))
            .expect("accepted");
    }
    let mut sequences = Vec::new();
    while world.scheduler.stats().preemptions == 0 {
        let steps = world.turn();
        let step = steps.first().expect("a step");
        sequences = step.chunks.iter().map(|chunk| chunk.sequence).collect();
        if world.scheduler.stats().preemptions == 1 {
            assert_eq!(step.closed, [SequenceId(2)], "the youngest went");
        }
    }
    assert_eq!(sequences, [SequenceId(0), SequenceId(1)]);
    assert_eq!(world.scheduler.stats().requests_waiting, 1);
    world.finish();
    for client in world.clients.values() {
        assert_eq!(
            (client.tokens.len(), &client.ended),
            (20, &Some(EndReason::Length))
        );
    }
}

#[test]
fn a_preempted_request_keeps_its_place_in_the_queue() {
    let config = SchedulerConfig {
        max_sequences: 2,
        ..world(6, 1).scheduler.config().clone()
    };
    let mut world = World::new(config, 1);
    for request in 1..=3 {
        let marked = [request as u32; 4];
        world.submit(submission(request, &marked, 16)).expect("accepted");
    }
    while world.scheduler.stats().preemptions == 0 {
        world.turn();
    }
    let mut opened = Vec::new();
    while opened.len() < 2 {
        let chunks = world.turn().into_iter().flat_map(|step| step.chunks);
        opened.extend(
            chunks
                .filter(|chunk| chunk.open.is_some())
                .map(|chunk| chunk.tokens[0]),
        );
    }
    assert_eq!(opened, [2, 3], "request 2 was there before request 3");
    world.finish();
}

#[test]
fn the_youngest_waits_with_what_it_holds_when_it_needs_a_block() {
    let mut world = world(5, 1);
    world.submit(submission(1, &prompt(11), 6)).expect("accepted");
    world.turn();
    world.submit(submission(2, &prompt(4), 5)).expect("accepted");
    let chunks: Vec<usize> = (0..7).map(|_| world.turn()[0].chunks.len()).collect();
    assert_eq!(
        chunks,
        [2, 1, 1, 1, 1, 1, 1],
        "request 1 holds 4 of 5 blocks until it ends"
    );
    assert_eq!(world.clients[&RequestId(1)].ended, Some(EndReason::Length));
    world.finish();
    assert_eq!(
        world.scheduler.stats().preemptions,
        0,
        "nobody is younger than request 2"
    );
}

#[test]
fn a_sequence_may_have_the_whole_cache() {
    let mut world = world(3, 2);
    world.submit(submission(1, &prompt(5), 100)).expect("accepted");
    world.submit(submission(2, &prompt(11), 100)).expect("accepted");
    world.finish();
    for (request, emitted) in [(1, 7), (2, 1)] {
        let client = &world.clients[&RequestId(request)];
        assert_eq!(client.tokens.len(), emitted, "the cache holds 12 tokens");
        assert_eq!(client.ended, Some(EndReason::Length));
    }
}

#[test]
fn a_sequence_in_flight_is_not_preempted() {
    let mut world = world(4, 2);
    for request in 1..=2 {
        world
            .submit(submission(request, &prompt(4), 12))
            .expect("accepted");
    }
    while !world.compose_all().is_empty() {
        world.pipeline.run_all();
        assert!(world.complete());
    }
    let stats = world.scheduler.stats();
    assert_eq!(
        (stats.kv_blocks_used, stats.steps_in_flight, stats.preemptions),
        (4, 1, 0),
        "request 1 needs a block of request 2 and waits for its step"
    );
    assert!(world.complete());
    let step = world.compose().expect("a step");
    assert_eq!(step.chunks[0].sequence, SequenceId(0));
    assert_eq!(step.closed, [SequenceId(1)]);
    world.finish();
}

#[test]
fn a_request_waits_until_there_are_blocks_for_all_it_has_and_one_to_grow_into() {
    let mut world = world(4, 1);
    world.submit(submission(1, &prompt(8), 4)).expect("accepted");
    world.submit(submission(2, &prompt(8), 4)).expect("accepted");
    world.submit(submission(3, &[1], 4)).expect("accepted");
    world.turn();
    let stats = world.scheduler.stats();
    assert_eq!(
        (stats.sequences_running, stats.requests_waiting),
        (1, 2),
        "request 2 would take the last block, request 3 does not overtake it"
    );
    world.finish();
    assert_eq!(world.scheduler.stats().preemptions, 0);
}

#[test]
fn blocks_of_a_cancelled_sequence_are_held_until_its_step_is_through() {
    let mut world = world(4, 2);
    world.submit(submission(1, &prompt(12), 4)).expect("accepted");
    world.submit(submission(2, &prompt(12), 4)).expect("accepted");
    assert_eq!(world.compose_all().len(), 1);
    assert!(world.cancel(RequestId(1), 1));
    assert_eq!(world.scheduler.stats().kv_blocks_used, 3, "KV-2");
    assert!(
        world.compose_all().is_empty(),
        "request 2 needs blocks that are still in use"
    );
    world.pipeline.run_all();
    assert!(world.complete());
    assert_eq!(world.scheduler.stats().kv_blocks_used, 0);
    let steps = world.compose_all();
    assert_eq!(steps[0].chunks[0].block_table, [0, 1, 2]);
    assert_eq!(steps[0].closed, [SequenceId(0)]);
    world.finish();
    assert!(world.clients[&RequestId(1)].tokens.is_empty());
}

#[test]
fn a_sequence_that_is_not_in_a_step_gives_its_blocks_back_at_once() {
    let mut world = world(8, 1);
    world.submit(submission(1, &prompt(12), 4)).expect("accepted");
    world.turn();
    assert!(world.cancel(RequestId(1), 1));
    assert_eq!(world.scheduler.stats().kv_blocks_used, 0);
    world.finish();
}
