//! The sampler against its twin: greedy, drawn, nucleus, and the most likely tokens, ties included.

use tramontane_worker::ops::{Backend, Sample, SampleParams, SampleResult};
use tramontane_worker::reference::CpuBackend;

use super::rig::{Numbers, Rig, device, on_every_kernel};

fn sample<B: Backend>(
    rig: &mut Rig<'_, B>,
    logits: &[Vec<f32>],
    params: &[SampleParams],
) -> Vec<SampleResult> {
    let order: Vec<usize> = (0..logits.len()).collect();
    let buffer = rig.picked(logits, &order);
    let params_buffer = rig.words(params);
    let rows = logits.len() as u32;
    let output = rig.zeros(SampleResult::bytes(rows) as usize / 4);
    let op = Sample {
        logits: &buffer,
        params: &params_buffer,
        output: &output,
        vocab: logits[0].len() as u32,
        rows,
    };
    rig.0.sample(&op).expect("valid");
    let words = rig.read(&output);
    SampleResult::parse(bytemuck::cast_slice(&words), params).expect("whole rows")
}

fn drawn(row: u32, temperature: f32, top_p: f32, top: u32) -> SampleParams {
    SampleParams {
        seed_low: 77 + row,
        seed_high: row,
        choice: row % 3,
        position: 1000 + row,
        temperature,
        top_p,
        top,
        reserved: 0,
    }
}

#[test]
fn sample_as_the_twin_does_alone_and_in_a_batch() {
    let numbers = &mut Numbers::new(20);
    for vocab in [20, 1000, 8192] {
        let logits: Vec<Vec<f32>> = numbers
            .rows(24, vocab)
            .into_iter()
            .map(|row| row.into_iter().map(|logit| logit * 6.0).collect())
            .collect();
        let params: Vec<SampleParams> = (0..24)
            .map(|row| match row % 4 {
                0 => SampleParams::greedy(row.min(20)),
                1 => drawn(row, 1.0, 1.0, 5),
                2 => drawn(row, 0.7, 0.9, 0),
                _ => drawn(row, 1.5, 0.3, 20),
            })
            .collect();
        let expected = sample(&mut Rig(&mut CpuBackend::new(1 << 30, 1 << 30)), &logits, &params);
        on_every_kernel(|device| compare(&mut Rig(device), &logits, &params, &expected));
    }
}

fn compare<B: Backend>(
    rig: &mut Rig<'_, B>,
    logits: &[Vec<f32>],
    params: &[SampleParams],
    expected: &[SampleResult],
) {
    let vocab = logits[0].len();
    let found = sample(rig, logits, params);
    for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.token, expected.token, "row {row} of {vocab} tokens");
        assert!(
            (found.logprob - expected.logprob).abs() < 1e-3,
            "{found:?} {expected:?}"
        );
        assert_eq!(found.top.len(), expected.top.len());
        for (found, expected) in found.top.iter().zip(&expected.top) {
            assert_eq!(found.0, expected.0, "row {row} of {vocab} tokens");
            assert!((found.1 - expected.1).abs() < 1e-3, "{found:?} {expected:?}");
        }
        let alone = sample(rig, &logits[row..=row], &params[row..=row]);
        assert_eq!(alone.as_slice(), std::slice::from_ref(found), "row {row} alone");
    }
}

#[test]
fn equal_logits_go_to_the_lowest_id() {
    let mut row = vec![0.0_f32; 64];
    for id in [9, 33, 61] {
        row[id] = 2.0;
    }
    let results = sample(&mut Rig(&mut *device()), &[row], &[SampleParams::greedy(6)]);
    let ids: Vec<u32> = results[0].top.iter().map(|top| top.0).collect();
    assert_eq!(results[0].token, 9);
    assert_eq!(ids, [9, 33, 61, 0, 1, 2]);
}
