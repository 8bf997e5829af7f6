//! The prefix cache: what is found, what is not, and when it goes.

use tramontane_model::ids::RequestId;
use tramontane_model::placement::{KvFormat, KvShape};
use tramontane_model::step::{RowRole, StepBatch};

use super::world::World;
use super::{config, prompt, submission};
use crate::scheduler::SchedulerConfig;

fn world(blocks: u32, steps_in_flight: usize) -> World {
    let config = SchedulerConfig {
        kv: KvShape {
            block_tokens: 4,
            blocks,
            format: KvFormat::F32,
        },
        steps_in_flight,
        prefix_cache: true,
        max_prefill_rows: 32,
        ..config()
    };
    World::new(config, steps_in_flight)
}

/// First position and rows of the chunks of a step.
fn rows(step: &StepBatch) -> Vec<(u32, usize)> {
    let chunks = step.chunks.iter();
    chunks
        .map(|chunk| (chunk.first_position, chunk.tokens.len()))
        .collect()
}

/// Turns until everything has ended; the rows of every step.
fn finish(world: &mut World) -> Vec<Vec<(u32, usize)>> {
    let mut steps = Vec::new();
    loop {
        let turned = world.turn();
        if turned.is_empty() {
            world.finish();
            return steps;
        }
        steps.extend(turned.iter().map(rows));
    }
}

fn cached(world: &World, request: u128) -> Option<u32> {
    world.clients[&RequestId(request)].cached_prompt_tokens
}

#[test]
fn a_prompt_starts_after_what_is_cached_but_its_last_token_is_computed() {
    let mut world = world(64, 1);
    world.submit(submission(1, &prompt(12), 3)).expect("accepted");
    assert_eq!(finish(&mut world)[0], [(0, 12)]);
    // The same, one token more, another tail, and one that ends within a block.
    let mut other = prompt(12);
    other[7] = 49;
    let again = [
        (2, prompt(12), 8),
        (3, prompt(13), 12),
        (4, other, 4),
        (5, prompt(7), 4),
    ];
    for (request, prompt, found) in again {
        world.submit(submission(request, &prompt, 3)).expect("accepted");
        let rest = prompt.len() - found as usize;
        assert_eq!(finish(&mut world)[0], [(found, rest)], "request {request}");
        assert_eq!(cached(&world, request), Some(found), "request {request}");
    }
    assert_eq!(cached(&world, 1), Some(0));
    let stats = world.scheduler.stats();
    assert_eq!((stats.prefix_lookup_tokens, stats.prefix_hit_tokens), (56, 28));
    assert!(stats.kv_blocks_cached > 0);
}

#[test]
fn without_a_prefix_cache_nothing_is_kept() {
    let config = SchedulerConfig {
        prefix_cache: false,
        ..world(64, 1).scheduler.config().clone()
    };
    let mut world = World::new(config, 1);
    for request in 1..=2 {
        world
            .submit(submission(request, &prompt(12), 3))
            .expect("accepted");
        assert_eq!(finish(&mut world)[0], [(0, 12)]);
        assert_eq!(cached(&world, request), Some(0));
    }
    let stats = world.scheduler.stats();
    assert_eq!((stats.kv_blocks_cached, stats.prefix_lookup_tokens), (0, 0));
}

#[test]
fn another_salt_finds_nothing() {
    let mut world = world(64, 1);
    for (request, salt, found) in [
        (1, vec![], 0),
        (2, vec![1], 0),
        (3, vec![1], 8),
        (4, vec![1, 0], 0),
    ] {
        let mut salted = submission(request, &prompt(12), 1);
        salted.cache_salt = salt;
        world.submit(salted).expect("accepted");
        world.finish();
        assert_eq!(cached(&world, request), Some(found), "request {request}");
    }
}

#[test]
fn what_was_generated_is_found_as_generated_and_not_as_given() {
    let mut world = world(64, 1);
    world.submit(submission(1, &prompt(6), 11)).expect("accepted");
    world.finish();
    let tokens = world.clients[&RequestId(1)].tokens.clone();

    // The next turn of a conversation: what was emitted comes back as prompt.
    let turn: Vec<u32> = prompt(6).into_iter().chain(tokens.clone()).collect();
    world.submit(submission(2, &turn, 1)).expect("accepted");
    assert_eq!(
        finish(&mut world)[0],
        [(4, 13)],
        "only the first block was all prompt"
    );
    assert_eq!(cached(&world, 2), Some(4));

    // A request that broke off: what was emitted is computed again in its own role.
    let mut again = submission(3, &prompt(6), 12);
    again.emitted = tokens;
    world.submit(again).expect("accepted");
    let step = world.turn().remove(0);
    let chunk = &step.chunks[0];
    assert_eq!(
        (chunk.first_position, chunk.tokens.len(), chunk.role),
        (16, 1, RowRole::Generated)
    );
    assert!(chunk.open.is_some() && chunk.sample);
    world.finish();
    assert_eq!(cached(&world, 3), Some(6), "all of the prompt");
}

#[test]
fn a_block_is_shared_when_its_step_is_through_and_not_before() {
    let mut world = world(64, 2);
    world.submit(submission(1, &prompt(12), 3)).expect("accepted");
    assert_eq!(world.compose_all().len(), 1);
    world.submit(submission(2, &prompt(13), 3)).expect("accepted");
    assert!(
        world.compose_all().is_empty(),
        "request 2 waits for the blocks that request 1 computes"
    );
    world.pipeline.run_all();
    assert!(world.complete());
    let steps = world.compose_all();
    let started = steps
        .iter()
        .flat_map(|step| &step.chunks)
        .find(|chunk| chunk.open.is_some());
    let started = started.expect("request 2 starts");
    assert_eq!((started.first_position, started.tokens.len()), (12, 1));
    assert_eq!(
        &started.block_table[..3],
        &[0, 1, 2],
        "in the blocks of request 1"
    );
    assert_eq!(world.scheduler.stats().kv_blocks_used, 5);
    world.finish();
}

#[test]
fn choices_of_one_prompt_compute_it_once() {
    let mut world = world(64, 1);
    for request in 1..=4 {
        world
            .submit(submission(request, &prompt(30), 5))
            .expect("accepted");
    }
    let steps = finish(&mut world);
    assert_eq!(steps[0], [(0, 30)]);
    assert_eq!(steps[1], [(30, 1), (28, 2), (28, 2), (28, 2)]);
}

#[test]
fn who_waits_for_blocks_goes_on_when_they_will_not_come() {
    let mut world = world(64, 1);
    world.submit(submission(1, &prompt(60), 5)).expect("accepted");
    world.submit(submission(2, &prompt(50), 5)).expect("accepted");
    assert_eq!(rows(&world.turn()[0]), [(0, 32)]);
    assert!(world.cancel(RequestId(1), 1));
    assert_eq!(rows(&world.turn()[0]), [(32, 18)]);
    world.finish();
}

#[test]
fn what_two_sequences_emit_alike_becomes_one_block_when_it_is_through() {
    for stages in 1..=3 {
        let mut world = world(64, stages);
        for request in 1..=2 {
            world
                .submit(submission(request, &prompt(9), 31))
                .expect("accepted");
        }
        let mut most = 0;
        while world.clients.values().any(|client| client.ended.is_none()) {
            world.turn();
            most = most.max(world.scheduler.stats().kv_blocks_used);
        }
        // Ten blocks each: one sequence is a few tokens ahead of the other, all else is the same.
        assert!((10..14).contains(&most), "{most} blocks at {stages} stages");
        world.finish();
    }
}

#[test]
fn other_salts_share_nothing_while_they_run() {
    let mut world = world(64, 1);
    for (request, salt) in [(1, vec![]), (2, vec![1])] {
        let mut salted = submission(request, &prompt(8), 3);
        salted.cache_salt = salt;
        world.submit(salted).expect("accepted");
    }
    world.turn();
    assert_eq!(world.scheduler.stats().kv_blocks_used, 4);
    world.finish();
}

#[test]
fn kept_blocks_are_free_for_any_use_and_the_longest_unused_goes_first() {
    let mut world = world(8, 1);
    let other: Vec<u32> = prompt(16).into_iter().rev().collect();
    world.submit(submission(1, &prompt(12), 1)).expect("accepted");
    world.finish();
    world.submit(submission(2, &other, 1)).expect("accepted");
    world.finish();
    let stats = world.scheduler.stats();
    assert_eq!((stats.kv_blocks_used, stats.kv_blocks_cached), (0, 7));
    // Takes the one untouched block and three of request 1.
    let third: Vec<u32> = (0..15).map(|index| 40 - index).collect();
    world.submit(submission(3, &third, 1)).expect("accepted");
    world.finish();
    assert_eq!(world.scheduler.stats().prefix_evictions, 3);
    for (request, prompt, found) in [(4, other, 12), (5, prompt(12), 0)] {
        world.submit(submission(request, &prompt, 1)).expect("accepted");
        world.finish();
        assert_eq!(cached(&world, request), Some(found), "request {request}");
    }
}

#[test]
fn a_preempted_sequence_comes_back_to_what_is_left_of_its_blocks() {
    let mut world = world(9, 1);
    for request in 1..=2 {
        let marked = [request as u32; 8];
        world.submit(submission(request, &marked, 20)).expect("accepted");
    }
    while world.scheduler.stats().preemptions == 0 {
        world.turn();
    }
    world.finish();
    assert!(world.scheduler.stats().prefix_hit_tokens > 0);
    assert_eq!(cached(&world, 2), Some(0), "told of its first start only");
}

#[test]
fn a_prompt_that_is_scored_is_computed_whole_and_told_once() {
    let mut world = world(64, 1);
    world.submit(submission(1, &prompt(12), 3)).expect("accepted");
    finish(&mut world);
    let scored = |request, prompt: &[u32]| {
        let mut scored = submission(request, prompt, 3);
        scored.sampling.prompt_logprobs = Some(2);
        scored
    };
    // Two that begin alike do not wait for one another: neither has a use for what the other computes.
    for request in [2, 3] {
        world.submit(scored(request, &prompt(12))).expect("accepted");
    }
    assert_eq!(finish(&mut world)[0], [(0, 12), (0, 12)]);
    for request in [2, 3] {
        assert_eq!(cached(&world, request), Some(0));
        assert_eq!(world.clients[&RequestId(request)].scores.len(), 11);
    }
    // A long one comes in pieces, and one of a single token has nothing to be told of.
    world.submit(scored(4, &prompt(40))).expect("accepted");
    world.submit(scored(5, &prompt(1))).expect("accepted");
    finish(&mut world);
    assert_eq!(world.clients[&RequestId(4)].scores.len(), 39);
    assert_eq!(world.clients[&RequestId(5)].scores.len(), 0);
    // What it has left in the cache is of use to others.
    world.submit(submission(6, &prompt(40), 3)).expect("accepted");
    assert_eq!(finish(&mut world)[0], [(36, 4)]);
}
