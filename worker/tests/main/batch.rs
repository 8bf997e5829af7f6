//! DET-1 on the whole model: a sequence gets the same bits alone and in a batch, whatever the others are, its place among
//! them and its chunks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tramontane_model::ids::{DeviceRef, SequenceId, StepId};
use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_model::step::{RowRole, SequenceChunk, StepBatch};
use tramontane_proto::ExpertWork;
use tramontane_worker::config::DeviceConfig;
use tramontane_worker::executor::{
    ExchangeError, ExchangeEvent, Executor, ExecutorOptions, ExpertExchange, StageInput, StageOutput,
};
use tramontane_worker::gpu::{self, GpuBackend};
use tramontane_worker::weights::{DeviceSlices, LoadProgress, LoadWatch, ModelFiles};

use crate::cluster::{replica, repository};

const BLOCKS: u32 = 8;

/// All experts are the device's own.
struct Alone;

impl ExpertExchange for Alone {
    fn send(&mut self, group: u32, _: &DeviceRef, _: ExpertWork) -> Result<(), ExchangeError> {
        let problem = "there is no other device".to_owned();
        Err(ExchangeError::Group { group, problem })
    }

    fn next(&mut self, _: Instant) -> Result<ExchangeEvent, ExchangeError> {
        Err(ExchangeError::Deadline)
    }
}

fn executor() -> Executor<GpuBackend> {
    let config = DeviceConfig {
        adapter: None,
        memory_bytes: Some(1 << 30),
    };
    let backend = gpu::open(&config).expect("a Vulkan adapter");
    let model = ModelFiles::open(&repository().join("cli/assets/mini-large-3")).expect("the model");
    let replica = replica(1, &[(0, 6, "w1/0", &[(16, "w1/0")])]);
    let slices = DeviceSlices::of(&replica, &replica.stages[0].owner, &model.spec).expect("slices");
    let options = ExecutorOptions {
        timeout: Duration::from_secs(60),
    };
    let mut executor = Executor::new(backend, Arc::new(model), options);
    let watch = LoadWatch {
        progress: &LoadProgress::default(),
        cancelled: &|| false,
    };
    executor.load(replica.fence(), &slices, &watch).expect("loads");
    executor
}

/// Rows of a sequence: which, from which position, and in which role.
type Chunk<'a> = (u64, u32, &'a [u32], RowRole);

fn step(executor: &mut Executor<GpuBackend>, chunks: &[Chunk<'_>]) -> Vec<SampledToken> {
    let chunk = |&(sequence, first_position, tokens, role): &Chunk<'_>| SequenceChunk {
        sequence: SequenceId(sequence),
        open: Some(SamplingParams {
            temperature: if sequence.is_multiple_of(2) { 0.0 } else { 0.8 },
            top_p: 0.9,
            seed: 5,
            logprobs: Some(3),
            ..SamplingParams::GREEDY
        }),
        first_position,
        tokens: tokens.to_vec(),
        role,
        sample: true,
        block_table: (0..BLOCKS)
            .map(|block| block * 32 + sequence as u32 % 32)
            .collect(),
    };
    let batch = StepBatch {
        fence: replica(1, &[(0, 6, "w1/0", &[])]).fence(),
        step: StepId(1),
        chunks: chunks.iter().map(chunk).collect(),
        closed: Vec::new(),
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let output = executor.run(&batch, StageInput::Embed, &mut Alone, deadline);
    match output.expect("runs") {
        StageOutput::Sampled(result) => result.tokens.into_iter().map(|(_, token)| token).collect(),
        StageOutput::Hidden(_) => panic!("the last stage samples"),
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_in_a_batch_and_in_chunks() {
    use RowRole::{Generated, Given};
    let mut executor = executor();
    let prompts: Vec<Vec<u32>> = (0..9_u32)
        .map(|sequence| {
            (0..5 + 5 * sequence)
                .map(|i| 300 + 101 * sequence + 7 * i)
                .collect()
        })
        .collect();
    let batched = |executor: &mut Executor<GpuBackend>, order: &[u64]| {
        let prefill: Vec<Chunk<'_>> = order
            .iter()
            .map(|&sequence| (sequence, 0, prompts[sequence as usize].as_slice(), Given))
            .collect();
        let (mixed, rest) = prefill.split_at(4);
        let first = step(executor, mixed);
        // One decodes beside the prompts of others.
        let next = [first[0].token];
        let decoding = [(
            order[0],
            prompts[order[0] as usize].len() as u32,
            &next[..],
            Generated,
        )];
        let second = step(executor, &[&decoding[..], rest].concat());
        let mut tokens: Vec<(u64, SampledToken)> = order.iter().copied().zip(first).collect();
        tokens.extend(order[4..].iter().copied().zip(second[1..].iter().cloned()));
        let nexts: Vec<[u32; 1]> = tokens.iter().map(|(_, token)| [token.token]).collect();
        let decode: Vec<Chunk<'_>> = (order.iter().zip(&nexts))
            .map(|(&sequence, next)| {
                let position = prompts[sequence as usize].len() as u32;
                (sequence, position, next.as_slice(), Generated)
            })
            .collect();
        let third = step(executor, &decode);
        assert_eq!(
            third[0], second[0],
            "decoded beside prompts, and beside others that decode"
        );
        tokens.extend(order.iter().copied().zip(third));
        tokens.sort_by_key(|(sequence, _)| *sequence);
        tokens
    };
    let order: Vec<u64> = (0..9).collect();
    let together = batched(&mut executor, &order);
    let reversed: Vec<u64> = order.iter().rev().copied().collect();
    assert_eq!(batched(&mut executor, &reversed), together, "in another order");
    for (sequence, pair) in order.iter().zip(together.chunks(2)) {
        let prompt = &prompts[*sequence as usize];
        let (start, end) = prompt.split_at(prompt.len() / 2 + 1);
        let position = start.len() as u32;
        step(&mut executor, &[(*sequence, 0, start, Given)]);
        let first = step(&mut executor, &[(*sequence, position, end, Given)]);
        assert_eq!(first[0], pair[0].1, "sequence {sequence} alone, in chunks");
        let next = [first[0].token];
        let second = step(
            &mut executor,
            &[(*sequence, prompt.len() as u32, &next, Generated)],
        );
        assert_eq!(second[0], pair[1].1, "sequence {sequence} alone");
    }
}
