//! What goes into a step: chunks, shares, roles.

use tramontane_model::footprint::StepCapacity;
use tramontane_model::ids::RequestId;
use tramontane_model::step::{RowRole, StepBatch};

use super::world::World;
use super::{config, prompt, submission};
use crate::scheduler::SchedulerConfig;

/// Rows of each chunk.
fn rows(batch: &StepBatch) -> Vec<usize> {
    batch.chunks.iter().map(|chunk| chunk.tokens.len()).collect()
}

fn world(steps_in_flight: usize) -> World {
    let config = SchedulerConfig {
        steps_in_flight,
        ..config()
    };
    World::new(config, steps_in_flight)
}

#[test]
fn a_long_prompt_comes_in_chunks_and_holds_no_stream_up() {
    let mut world = world(1);
    for request in 1..=3 {
        world.submit(submission(request, &[1], 40)).expect("accepted");
    }
    world.turn();
    world.submit(submission(9, &prompt(70), 1)).expect("accepted");
    for chunk in [16, 16, 16, 16, 6] {
        let before: Vec<usize> = world.clients.values().map(|client| client.tokens.len()).collect();
        let steps = world.turn();
        assert_eq!(rows(&steps[0]), [1, 1, 1, chunk], "decode rows come first");
        assert_eq!(
            steps[0].chunks[3].sample,
            chunk == 6,
            "only the last row is sampled"
        );
        let after = world.clients.values().map(|client| client.tokens.len());
        for (request, (before, after)) in before.iter().zip(after).enumerate().take(3) {
            assert_eq!(before + 1, after, "stream {request} was held up");
        }
    }
    assert_eq!(world.clients[&RequestId(9)].tokens.len(), 1);
    world.finish();
}

#[test]
fn prompts_share_the_prefill_rows_of_a_step() {
    let mut world = world(1);
    for request in 1..=4 {
        world
            .submit(submission(request, &prompt(6), 2))
            .expect("accepted");
    }
    assert_eq!(rows(&world.turn()[0]), [6, 6, 4]);
    assert_eq!(rows(&world.turn()[0]), [1, 1, 2, 6]);
    world.finish();
}

#[test]
fn every_step_that_may_be_in_flight_is_when_there_are_sequences_enough() {
    for (slots, sequences) in [(2, 2), (3, 8), (4, 4), (4, 7), (4, 16)] {
        let mut world = world(slots);
        for request in 0..sequences {
            world.submit(submission(request, &[1], 30)).expect("accepted");
        }
        for _ in 0..25 * slots {
            let composed = world.compose_all();
            assert_eq!(world.scheduler.stats().steps_in_flight, slots, "a stage idles");
            for batch in composed {
                let (most, fewest) = (sequences.div_ceil(slots as u128), sequences / slots as u128);
                let size = batch.chunks.len() as u128;
                assert!(
                    (fewest..=most).contains(&size),
                    "{size} of {sequences} in one step"
                );
            }
            world.pipeline.run_all();
            assert!(world.complete());
        }
        world.finish();
    }
}

#[test]
fn uneven_steps_even_out() {
    let mut world = world(4);
    world.submit(submission(0, &[1], 60)).expect("accepted");
    world.turn();
    for request in 1..12 {
        world.submit(submission(request, &[1], 60)).expect("accepted");
    }
    // The requests between leave, so that the steps left differ by what happened to be in each.
    for _ in 0..8 {
        world.turn();
    }
    for request in [1, 2, 3, 4] {
        world.cancel(RequestId(request), 1);
    }
    for _ in 0..8 {
        world.turn();
    }
    let sizes: Vec<usize> = (0..4).map(|_| world.turn()[0].chunks.len()).collect();
    assert_eq!(sizes, [2, 2, 2, 2]);
    world.finish();
}

#[test]
fn no_more_run_than_the_steps_have_room_for() {
    for (rows, sequences, running) in [(20, 32, 8), (64, 3, 6), (64, 32, 16)] {
        let config = SchedulerConfig {
            capacity: StepCapacity {
                rows,
                sequences,
                expanded_group: 0,
            },
            steps_in_flight: 2,
            ..config()
        };
        let mut world = World::new(config, 2);
        for request in 0..16 {
            world
                .submit(submission(request, &prompt(3), 30))
                .expect("accepted");
        }
        for _ in 0..20 {
            world.turn();
        }
        assert_eq!(world.scheduler.stats().sequences_running, running);
        world.finish();
    }
}

#[test]
fn chunks_of_one_prompt_are_in_flight_in_consecutive_steps() {
    let mut world = world(4);
    world.submit(submission(1, &prompt(70), 2)).expect("accepted");
    let steps = world.compose_all();
    let chunks: Vec<_> = steps.iter().map(|step| &step.chunks[0]).collect();
    let shapes: Vec<_> = chunks
        .iter()
        .map(|chunk| (chunk.first_position, chunk.tokens.len(), chunk.sample))
        .collect();
    assert_eq!(
        shapes,
        [(0, 16, false), (16, 16, false), (32, 16, false), (48, 16, false)]
    );
    let opened = chunks.iter().filter(|chunk| chunk.open.is_some());
    assert_eq!(opened.count(), 1);
    world.pipeline.run_all();
    assert!(world.complete());
    let last = world.compose_all();
    assert_eq!((rows(&last[0]), last[0].chunks[0].sample), (vec![6], true));
    assert!(
        world.compose_all().is_empty(),
        "the next row needs the token of the last"
    );
    world.finish();
}

#[test]
fn a_long_prompt_has_a_chunk_in_every_step_beside_the_streams() {
    let mut world = world(2);
    for request in 1..=2 {
        world.submit(submission(request, &[1], 40)).expect("accepted");
    }
    world.turn();
    world.turn();
    world.submit(submission(9, &prompt(100), 1)).expect("accepted");
    let steps: Vec<StepBatch> = (0..6).flat_map(|_| world.turn()).collect();
    for step in &steps {
        let mut rows = rows(step);
        assert_eq!(rows.pop(), Some(16), "a stage has no prompt rows: {rows:?}");
        assert_eq!(rows, [1]);
    }
    world.finish();
}

#[test]
fn what_leaves_with_several_chunks_in_flight_gives_its_blocks_back_with_the_last() {
    let mut world = world(3);
    world.submit(submission(1, &prompt(40), 2)).expect("accepted");
    assert_eq!(world.compose_all().len(), 3);
    assert!(world.cancel(RequestId(1), 1));
    world.pipeline.run_all();
    for used in [10, 10, 0] {
        assert!(world.complete());
        assert_eq!(world.scheduler.stats().kv_blocks_used, used, "KV-2");
    }
    world.finish();
}

#[test]
fn emitted_tokens_come_as_generated_rows_after_the_prompt() {
    let mut alone = world(1);
    alone.submit(submission(1, &prompt(6), 20)).expect("accepted");
    alone.finish();
    let tokens = &alone.clients[&RequestId(1)].tokens;

    let mut world = world(1);
    let mut again = submission(1, &prompt(6), 20);
    again.emitted = tokens[..19].to_vec();
    world.submit(again).expect("accepted");
    let steps: Vec<StepBatch> = (0..3).flat_map(|_| world.turn()).collect();
    let chunks: Vec<_> = steps.iter().map(|step| &step.chunks[0]).collect();
    let shape = |index: usize| {
        let chunk = chunks[index];
        (
            chunk.first_position,
            chunk.tokens.len(),
            chunk.role,
            chunk.sample,
            chunk.open.is_some(),
        )
    };
    assert_eq!(shape(0), (0, 6, RowRole::Given, false, true));
    assert_eq!(shape(1), (6, 16, RowRole::Generated, false, false));
    assert_eq!(shape(2), (22, 3, RowRole::Generated, true, false));
    assert_eq!(world.clients[&RequestId(1)].tokens, *tokens);
    world.finish();
}

#[test]
fn a_block_table_is_as_long_as_the_rows_so_far() {
    let mut world = world(1);
    world.submit(submission(1, &prompt(18), 4)).expect("accepted");
    let tables: Vec<Vec<u32>> = (0..4)
        .flat_map(|_| world.turn())
        .map(|mut step| step.chunks.remove(0).block_table)
        .collect();
    let expected: [&[u32]; 4] = [
        &[0, 1, 2, 3],
        &[0, 1, 2, 3, 4],
        &[0, 1, 2, 3, 4],
        &[0, 1, 2, 3, 4],
    ];
    assert_eq!(tables, expected);
    world.finish();
}
