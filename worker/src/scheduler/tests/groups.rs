//! Groups of expanded prompt rows: never cut, found in the cache only as what they are.

use tramontane_model::footprint::StepCapacity;
use tramontane_model::ids::RequestId;
use tramontane_model::step::{RowRole, StepBatch};

use super::world::World;
use super::{config, prompt, submission};
use crate::scheduler::SchedulerConfig;
use RowRole::{Expanded, Generated, Given};

const GROUP: u32 = 8;

fn world(max_prefill_rows: usize) -> World {
    let config = config();
    let config = SchedulerConfig {
        capacity: StepCapacity {
            expanded_group: GROUP,
            ..config.capacity
        },
        max_prefill_rows,
        prefix_cache: true,
        ..config
    };
    World::new(config, 1)
}

/// First position, rows and role of the chunks of a step.
fn chunks(step: &StepBatch) -> Vec<(u32, usize, RowRole)> {
    let chunks = step.chunks.iter();
    chunks
        .map(|chunk| (chunk.first_position, chunk.tokens.len(), chunk.role))
        .collect()
}

/// The chunks of the next steps.
fn turns(world: &mut World, steps: usize) -> Vec<Vec<(u32, usize, RowRole)>> {
    (0..steps)
        .flat_map(|_| world.turn().iter().map(chunks).collect::<Vec<_>>())
        .collect()
}

#[test]
fn whole_groups_are_expanded_and_the_rest_of_a_prompt_is_not() {
    let mut world = world(20);
    world.submit(submission(1, &prompt(29), 2)).expect("accepted");
    let expected = [
        vec![(0, 16, Expanded)],
        vec![(16, 8, Expanded)],
        vec![(24, 5, Given)],
        vec![(29, 1, Generated)],
    ];
    assert_eq!(turns(&mut world, 4), expected);
    world.finish();
    world.submit(submission(2, &[7; 7], 1)).expect("accepted");
    assert_eq!(turns(&mut world, 1), [[(0, 7, Given)]]);
    world.finish();
}

#[test]
fn a_group_waits_for_a_step_that_has_all_of_it() {
    let mut world = world(10);
    for (request, tokens) in [(1, 3), (2, 16)] {
        let prompt: Vec<u32> = prompt(tokens)
            .iter()
            .map(|token| (token + request) % 50)
            .collect();
        let submission = submission(request.into(), &prompt, 9);
        world.submit(submission).expect("accepted");
    }
    let expected = [
        vec![(0, 3, Given)],
        vec![(3, 1, Generated), (0, 8, Expanded)],
        vec![(4, 1, Generated), (8, 8, Expanded)],
        vec![(5, 1, Generated), (16, 1, Generated)],
    ];
    assert_eq!(turns(&mut world, 4), expected);
    world.finish();
}

#[test]
fn a_group_goes_whole_where_sequences_decode_and_time_is_left_for_fewer_rows() {
    let mut world = world(16);
    world.submit(submission(1, &[7], 40)).expect("accepted");
    // Time is left for four rows beside a decode step.
    let timed = |world: &mut World| {
        let composed = world.compose_all();
        world.pipeline.run_all();
        let prompt_rows = composed[0].chunks.iter().any(|chunk| chunk.role.is_prompt());
        world.scheduler.took(if prompt_rows { 300_000 } else { 100_000 });
        world.complete();
        chunks(&composed[0])
    };
    for _ in 0..3 {
        timed(&mut world);
    }
    world.submit(submission(2, &prompt(21), 1)).expect("accepted");
    let steps: Vec<_> = (0..4).map(|_| timed(&mut world)).collect();
    let fed: Vec<_> = steps.iter().filter_map(|step| step.get(1)).collect();
    let expected = [(0, 8, Expanded), (8, 8, Expanded), (16, 4, Given), (20, 1, Given)];
    assert_eq!(fed, expected.each_ref());
    world.finish();
}

#[test]
fn what_is_cached_serves_only_rows_of_the_same_role() {
    let mut world = world(32);
    world.submit(submission(1, &prompt(22), 1)).expect("accepted");
    world.finish();
    let mut other = prompt(20);
    other[13] = 49;
    let again = [
        // Blocks of four: three of them, in the middle of a group.
        (2, other, 12, vec![(12, 4, Expanded), (16, 4, Given)]),
        // Expanded up to 8.
        (3, prompt(14), 8, vec![(8, 6, Given)]),
        // Expanded up to 24, so that tokens from 16 on are of another role.
        (4, prompt(24), 16, vec![(16, 8, Expanded)]),
        (5, prompt(22), 20, vec![(20, 2, Given)]),
    ];
    for (request, prompt, found, rest) in again {
        world.submit(submission(request, &prompt, 1)).expect("accepted");
        let steps = turns(&mut world, rest.len());
        assert_eq!(steps.concat(), rest, "request {request}");
        world.finish();
        let cached = world.clients[&RequestId(request)].cached_prompt_tokens;
        assert_eq!(cached, Some(found), "request {request}");
    }
}
