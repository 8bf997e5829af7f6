//! How the simulated last stage makes a token: a hash of what the stages read and of how the token is sampled.

use tramontane_sim::cache::mix;
use tramontane_worker::executor::OpenSequence;

/// What the counter-based generator is keyed by, and the temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Draw {
    pub(super) seed: u64,
    pub(super) choice: u32,
    pub(super) position: u32,
    pub(super) temperature: f32,
}

/// What is done to a token's logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) token: u32,
    pub(super) repetition: f32,
    pub(super) penalty: f32,
}

pub(super) fn choose(state: u64, draw: Draw, changes: &[Change], vocab: u32) -> u32 {
    let mut state = mix(state, u64::from(draw.temperature.to_bits()));
    if draw.temperature > 0.0 {
        for value in [draw.seed, draw.choice.into(), draw.position.into()] {
            state = mix(state, value);
        }
    }
    for change in changes {
        state = mix(state, change.token.into());
        state = mix(state, u64::from(change.repetition.to_bits()));
        state = mix(state, u64::from(change.penalty.to_bits()));
    }
    ((state >> 32) % u64::from(vocab)) as u32
}

/// The next token of a sequence that the last stage has open.
pub(super) fn sample(open: &OpenSequence, state: u64, position: u32, vocab: u32) -> u32 {
    let params = open.params(position, vocab);
    let draw = Draw {
        seed: u64::from(params.seed_high) << 32 | u64::from(params.seed_low),
        choice: params.choice,
        position: params.position,
        temperature: params.temperature,
    };
    let changes = open.adjustments(position, None);
    let changes: Vec<Change> = changes
        .iter()
        .map(|one| Change {
            token: one.token,
            repetition: one.repetition,
            penalty: one.penalty,
        })
        .collect();
    choose(state, draw, &changes, vocab)
}
