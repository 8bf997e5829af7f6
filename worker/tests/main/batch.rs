//! DET-1 on the whole model: a sequence gets the same bits alone and in a batch, whatever the others are, its place among
//! them and its chunks.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tramontane_kernels::gpu::DeviceConfig;
use tramontane_kernels::gpu::{self, GpuBackend};
use tramontane_kernels::ops::OpError;
use tramontane_model::ids::{Origin, SequenceId, StepId};
use tramontane_model::sampling::{SampledToken, SamplingParams};
use tramontane_model::step::{Opening, RowRole, SequenceChunk, StepBatch};
use tramontane_worker::executor::{AllExpertsHere, Executor, ExecutorOptions, StageInput, StageOutput};
use tramontane_worker::weights::{DeviceSlices, LoadProgress, LoadWatch, ModelFiles};

use crate::cluster::{StagePlan, replica, repository};

const BLOCKS: u32 = 8;

/// The miniature on one device.
pub(crate) fn executor() -> Executor<GpuBackend> {
    let dir = repository().join("cli/assets/mini-large-3");
    executor_of(&dir, &[(0, 6, "w1/0", &[(16, "w1/0")])])
}

/// A checkpoint on one device.
pub(crate) fn executor_of(dir: &Path, stages: &[StagePlan<'_>]) -> Executor<GpuBackend> {
    executor_on(gpu::open, dir, stages)
}

/// The same, on a device that is opened so.
fn executor_on(
    open: fn(&DeviceConfig) -> Result<GpuBackend, OpError>,
    dir: &Path,
    stages: &[StagePlan<'_>],
) -> Executor<GpuBackend> {
    let config = DeviceConfig {
        memory_bytes: Some(1 << 30),
        ..DeviceConfig::default()
    };
    let backend = open(&config).expect("a Vulkan adapter");
    let model = ModelFiles::open(dir).expect("the model");
    let replica = replica(1, stages);
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

/// Greedy and drawn, each with and without adjusted logits.
fn sampling(sequence: u64) -> SamplingParams {
    let biases = if sequence % 4 < 2 { 0 } else { 9 };
    SamplingParams {
        temperature: if sequence.is_multiple_of(2) { 0.0 } else { 0.8 },
        top_p: 0.9,
        top_k: 50,
        min_p: 0.001,
        seed: 5,
        logit_bias: (0..biases).map(|i| (1000 + 100 * i, 1.5)).collect(),
        logprobs: Some(3),
        ..SamplingParams::GREEDY
    }
}

/// Rows of a sequence: which, from which position, and in which role.
type Chunk<'a> = (u64, u32, &'a [u32], RowRole);

fn step(executor: &mut Executor<GpuBackend>, chunks: &[Chunk<'_>]) -> Vec<SampledToken> {
    let chunk = |&(sequence, first_position, tokens, role): &Chunk<'_>| SequenceChunk {
        sequence: SequenceId(sequence),
        open: Some(Opening::new(Origin::NOBODY, &sampling(sequence), &[], 0, 0)),
        first_position,
        tokens: tokens.to_vec(),
        role,
        sample: true,
        scored: vec![],
        block_table: (0..BLOCKS)
            .map(|block| block * 32 + sequence as u32 % 32)
            .collect(),
    };
    run(executor, chunks.iter().map(chunk).collect())
}

pub(crate) fn run(executor: &mut Executor<GpuBackend>, chunks: Vec<SequenceChunk>) -> Vec<SampledToken> {
    let batch = StepBatch {
        fence: replica(1, &[(0, 6, "w1/0", &[])]).fence(),
        step: StepId(1),
        chunks,
        closed: Vec::new(),
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let output = executor.run(&batch, StageInput::Embed, &mut AllExpertsHere, deadline);
    match output.expect("runs") {
        StageOutput::Sampled(result) => result.tokens.into_iter().map(|(_, token)| token).collect(),
        StageOutput::Hidden(_) => panic!("the last stage samples"),
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_in_a_batch_and_in_chunks() {
    has_the_same_bits(executor());
}

#[test]
fn a_sequence_of_a_dense_model_has_the_same_bits_alone_in_a_batch_and_in_chunks() {
    let dir = repository().join("tests/fixtures/micro-ministral");
    has_the_same_bits(executor_of(&dir, &[(0, 3, "w1/0", &[])]));
}

#[test]
fn a_sequence_has_the_same_bits_where_given_rows_have_kernels_of_their_own() {
    let dir = repository().join("cli/assets/mini-large-3");
    for open in [gpu::open_with_gpu_kernels, gpu::open_with_given_rows_in_f16] {
        has_the_same_bits(executor_on(open, &dir, &[(0, 6, "w1/0", &[(16, "w1/0")])]));
    }
}

fn has_the_same_bits(mut executor: Executor<GpuBackend>) {
    use RowRole::{Generated, Given};
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

/// A sequence whose next token depends on all that it has.
pub(crate) struct Growing {
    pub(crate) sequence: u64,
    pub(crate) sampling: SamplingParams,
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt: usize,
    pub(crate) done: usize,
}

impl Growing {
    /// A sequence that has its prompt only.
    pub(crate) fn new(sequence: u64, sampling: SamplingParams, prompt: Vec<u32>) -> Self {
        Self {
            sequence,
            sampling,
            prompt: prompt.len(),
            tokens: prompt,
            done: 0,
        }
    }

    /// The next rows of one role; opens under a new id if `reopens`, in the same blocks.
    pub(crate) fn chunk(&mut self, rows: usize, opens: bool) -> SequenceChunk {
        let start = self.done;
        let (role, role_end) = match start < self.prompt {
            true => (RowRole::Given, self.prompt),
            false => (RowRole::Generated, self.tokens.len()),
        };
        let blocks = self.sequence as u32 % 32;
        self.sequence += if opens { 32 } else { 0 };
        self.done = role_end.min(start + rows);
        SequenceChunk {
            sequence: SequenceId(self.sequence),
            open: opens
                .then(|| Opening::new(Origin::NOBODY, &self.sampling, &self.tokens, self.prompt, start)),
            first_position: start as u32,
            tokens: self.tokens[start..self.done].to_vec(),
            role,
            sample: true,
            scored: vec![],
            block_table: (0..BLOCKS).map(|block| block * 32 + blocks).collect(),
        }
    }
}

#[test]
fn penalties_are_the_same_alone_in_a_batch_and_wherever_a_sequence_opens() {
    let sampling = SamplingParams {
        temperature: 0.9,
        presence_penalty: 0.5,
        frequency_penalty: 1.5,
        repetition_penalty: 1.4,
        seed: 8,
        logprobs: Some(2),
        ..SamplingParams::GREEDY
    };
    let mut executor = executor();
    let new = |sequence: u64| {
        let length = 6 + 3 * sequence as u32;
        let tokens = (0..length).map(|i| 400 + 31 * sequence as u32 + 11 * (i % 7));
        Growing::new(sequence, sampling.clone(), tokens.collect())
    };
    let mut alone = Vec::new();
    for sequence in 0..4 {
        let mut penalised = new(sequence);
        let mut found = Vec::new();
        for generated in 0..8 {
            let chunk = penalised.chunk(64, generated == 0);
            let sampled = run(&mut executor, vec![chunk]).remove(0);
            penalised.tokens.push(sampled.token);
            found.push(sampled);
        }
        alone.push(found);
    }
    let mut all: Vec<Growing> = (0..4).map(new).collect();
    for generated in 0..8 {
        let chunks = all.iter_mut().map(|one| one.chunk(64, generated == 0)).collect();
        for ((one, sampled), alone) in all.iter_mut().zip(run(&mut executor, chunks)).zip(&alone) {
            assert_eq!(sampled, alone[generated], "token {generated} in a batch");
            one.tokens.push(sampled.token);
        }
    }
    // What is in the cache already need not come again: each opens anew at some place of its prompt or its output.
    for (one, alone) in all.iter_mut().zip(&alone) {
        for start in [1, one.prompt - 1, one.prompt, one.prompt + 4] {
            one.done = start;
            let rows = if start < one.prompt { one.prompt } else { 3 };
            let chunk = one.chunk(rows, true);
            let sampled = run(&mut executor, vec![chunk]).remove(0);
            assert_eq!(sampled, alone[one.done - one.prompt], "opened at {start}");
            if start < one.prompt {
                let chunk = one.chunk(3, false);
                let sampled = run(&mut executor, vec![chunk]).remove(0);
                assert_eq!(sampled, alone[3], "opened at {start}, then went on");
            }
        }
    }
}
