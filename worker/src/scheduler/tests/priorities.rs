//! Who is served first, and who gives way.

use tramontane_model::ids::RequestId;
use tramontane_model::placement::{KvFormat, KvShape};

use super::world::World;
use super::{config, prompt, submission};
use crate::scheduler::{SchedulerConfig, Submission};

fn urgent(request: u128, priority: i32, max_tokens: u32) -> Submission {
    Submission {
        priority,
        ..submission(request, &[request as u32; 4], max_tokens)
    }
}

fn world(blocks: u32, max_sequences: usize) -> World {
    let config = SchedulerConfig {
        kv: KvShape {
            block_tokens: 4,
            blocks,
            format: KvFormat::F32,
        },
        max_sequences,
        ..config()
    };
    World::new(config, 1)
}

#[test]
fn the_lowest_number_is_served_first_then_the_earliest() {
    let mut world = world(64, 1);
    for (request, priority) in [(1, 5), (2, 0), (3, -7), (4, 0), (5, 100)] {
        world.submit(urgent(request, priority, 2)).expect("accepted");
    }
    let mut order = Vec::new();
    for _ in 0..11 {
        let chunks = world.turn().into_iter().flat_map(|step| step.chunks);
        order.extend(
            chunks
                .filter(|chunk| chunk.open.is_some())
                .map(|chunk| chunk.tokens[0]),
        );
    }
    assert_eq!(order, [3, 2, 4, 1, 5]);
    world.finish();
}

#[test]
fn a_running_stream_does_not_give_its_place_to_one_that_comes() {
    let mut world = world(64, 1);
    world.submit(urgent(1, 100, 6)).expect("accepted");
    world.turn();
    world.submit(urgent(2, -100, 6)).expect("accepted");
    for _ in 0..5 {
        world.turn();
    }
    assert_eq!(world.clients[&RequestId(1)].tokens.len(), 6);
    assert_eq!(world.scheduler.stats().preemptions, 0);
    world.finish();
}

#[test]
fn for_want_of_blocks_the_least_urgent_gives_way_whenever_it_came() {
    let mut world = world(8, 16);
    for (request, priority) in [(1, 3), (2, 0), (3, 0)] {
        world.submit(urgent(request, priority, 20)).expect("accepted");
    }
    let mut running = Vec::new();
    while world.scheduler.stats().preemptions == 0 {
        let steps = world.turn();
        running = steps[0].chunks.iter().map(|chunk| chunk.sequence.0).collect();
    }
    assert_eq!(running, [0, 1], "requests 2 and 3, which started first");
    assert_eq!(world.clients[&RequestId(1)].ended, None);
    world.finish();
    let mut later = submission(9, &prompt(4), 2);
    later.priority = 1;
    world.submit(later).expect("accepted");
    world.finish();
}
