//! What is refused, in the words that say what would be right.

use tramontane_model::ids::RequestId;
use tramontane_model::sampling::SamplingError;
use tramontane_model::time::Tick;

use super::world::World;
use super::{CACHE_KEY, config, prompt, submission};
use crate::scheduler::{
    MAX_CACHE_SALT_BYTES, MAX_STOP_TOKENS, Refusal, Scheduler, SchedulerConfig, Submission,
};

#[test]
fn each_field_of_a_submission_is_checked() {
    type Change = fn(&mut Submission);
    let changes: [(Change, &str); 16] = [
        (|s| s.prompt.clear(), "prompt is empty"),
        (|s| s.prompt = prompt(128), "prompt has 128 tokens"),
        (|s| s.emitted = prompt(124), "and 124 were emitted"),
        (|s| s.prompt[2] = 50, "prompt[2] is 50, token ids are below 50"),
        (|s| s.emitted = vec![1, 99], "emitted[1] is 99"),
        (|s| s.stop_tokens = vec![u32::MAX], "stop_tokens[0]"),
        (|s| s.max_tokens = 0, "max_tokens is 0"),
        (|s| s.emitted = prompt(9), "not below the 9 tokens"),
        (|s| s.stop_tokens = vec![1; MAX_STOP_TOKENS + 1], "65 entries"),
        (|s| s.cache_salt = vec![0; MAX_CACHE_SALT_BYTES + 1], "257 bytes"),
        (|s| s.priority = 101, "priority is 101, it must be -100 to 100"),
        (|s| s.priority = i32::MIN, "priority is -2147483648"),
        (|s| s.sampling.top_p = 0.0, "top_p"),
        (|s| s.sampling.logit_bias = vec![(50, 1.0)], "logit_bias"),
        (|s| s.sampling.held_back = vec![50], "held_back"),
        (|s| s.deadline = Tick(0), "deadline"),
    ];
    for (change, words) in changes {
        let mut world = World::new(config(), 1);
        let mut changed = submission(1, &prompt(5), 8);
        change(&mut changed);
        let refusal = world.submit(changed).expect_err(words).to_string();
        assert!(refusal.contains(words), "{refusal:?} does not say {words:?}");
        world
            .submit(submission(1, &prompt(5), 8))
            .expect("the id is free");
        world.finish();
    }
}

#[test]
fn a_sampling_fault_keeps_its_type() {
    let mut world = World::new(config(), 1);
    let mut hot = submission(1, &prompt(5), 8);
    hot.sampling.temperature = 3.0;
    let refusal = Refusal::Sampling(SamplingError::Range {
        field: "temperature",
        found: 3.0,
        right: "between 0 and 2",
    });
    assert_eq!(world.submit(hot), Err(refusal));
}

#[test]
fn a_full_queue_says_how_full_it_is() {
    let mut world = World::new(config(), 1);
    for request in 0..16 {
        world
            .submit(submission(request, &prompt(5), 2))
            .expect("accepted");
    }
    let refusal = Refusal::QueueFull {
        waiting: 16,
        limit: 16,
    };
    assert_eq!(world.submit(submission(16, &prompt(5), 2)), Err(refusal));
    world.turn();
    world
        .submit(submission(16, &prompt(5), 2))
        .expect("there is room");
    world.finish();
}

#[test]
fn tokens_that_wait_are_bounded_but_one_request_may_always_wait() {
    let config = SchedulerConfig {
        max_waiting_tokens: 60,
        max_sequences: 1,
        ..config()
    };
    let mut world = World::new(config, 1);
    world
        .submit(submission(1, &prompt(20), 80))
        .expect("nobody waits");
    let refusal = |tokens, waiting| {
        Err(Refusal::TokensFull {
            tokens,
            waiting,
            limit: 60,
        })
    };
    assert_eq!(world.submit(submission(2, &prompt(5), 1)), refusal(6, 100));
    world.turn();
    world
        .submit(submission(2, &prompt(20), 20))
        .expect("nobody waits");
    assert_eq!(world.submit(submission(3, &prompt(5), 16)), refusal(21, 40));
    world
        .submit(submission(3, &prompt(5), 15))
        .expect("60 tokens wait");
    world.resubmit(RequestId(2)).expect("it gives its place");
    world.finish();
}

#[test]
fn each_field_of_a_configuration_is_checked() {
    type Change = fn(&mut SchedulerConfig);
    let changes: [(Change, &str); 15] = [
        (|c| c.kv.block_tokens = 0, "kv.block_tokens is 0"),
        (|c| c.kv.blocks = 0, "kv.blocks is 0"),
        (|c| c.kv.blocks = u32::MAX, "kv.blocks is 4294967295"),
        (|c| c.steps_in_flight = 0, "steps_in_flight is 0"),
        (|c| c.capacity.rows = 0, "rows is 0"),
        (|c| c.capacity.sequences = 1025, "sequences is 1025"),
        (
            |c| c.capacity.expanded_group = 17,
            "expanded_group is 17, it must be at most max_prefill_rows, which is 16",
        ),
        (|c| c.max_prefill_rows = 0, "max_prefill_rows is 0"),
        (|c| c.max_sequences = 0, "max_sequences is 0"),
        (|c| c.max_waiting = 0, "max_waiting is 0"),
        (|c| c.max_waiting_tokens = 0, "max_waiting_tokens is 0"),
        (|c| c.max_positions = 1, "no room for one token"),
        (|c| c.vocab_size = 0, "vocab_size is 0"),
        (|c| c.max_prefill_rows = 64, "max_prefill_rows is 64"),
        (
            |c| (c.kv.blocks, c.kv.block_tokens) = (1, 1),
            "no room for one token",
        ),
    ];
    for (change, words) in changes {
        let mut changed = config();
        change(&mut changed);
        let error = Scheduler::new(changed, CACHE_KEY).expect_err(words).to_string();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }
    let mut twice = config();
    (twice.max_waiting, twice.vocab_size) = (0, 0);
    let error = Scheduler::new(twice, CACHE_KEY).expect_err("two faults");
    assert_eq!(error.faults.len(), 2, "all faults at once: {error}");
}
