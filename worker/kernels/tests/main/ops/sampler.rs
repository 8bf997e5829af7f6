//! The sampler and the adjustment of logits against their twins: greedy, drawn, every threshold, copies, ties.

use tramontane_kernels::ops::{
    Adjust, AdjustedRow, Adjustment, Backend, HELD_BACK, NO_ROW, Sample, SampleParams, SampleResult,
    mask_words,
};
use tramontane_kernels::reference::CpuBackend;

use super::rig::{Case, Numbers, Rig, check, device, on_every_kernel};

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
        ..SampleParams::greedy(top)
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
fn a_token_that_is_given_is_taken_with_its_log_probability() {
    let logits: Vec<Vec<f32>> = Numbers::new(23).rows(12, 1000);
    let given = |row: u32| SampleParams {
        forced: row * 90,
        ..drawn(row, 0.5 * (row % 3) as f32, 0.5, row)
    };
    let params: Vec<SampleParams> = (0..12).map(given).collect();
    let expected = sample(&mut Rig(&mut CpuBackend::new(1 << 30, 1 << 30)), &logits, &params);
    for (row, result) in (0..).zip(&expected) {
        assert_eq!(result.token, row * 90);
        let sum: f64 = logits[row as usize]
            .iter()
            .map(|&logit| f64::from(logit).exp())
            .sum();
        let logit = f64::from(logits[row as usize][result.token as usize]);
        assert!((f64::from(result.logprob) - (logit - sum.ln())).abs() < 1e-5);
    }
    on_every_kernel(|device| compare(&mut Rig(device), &logits, &params, &expected));
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

/// Rows of logits after those that are sampled: the first has other best tokens.
fn with_copy(mut logits: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let copy = logits[0].iter().map(|logit| 3.0 - logit).collect();
    logits.push(copy);
    logits
}

#[test]
fn thresholds_and_copies_are_as_the_twin_has_them() {
    let numbers = &mut Numbers::new(21);
    let mut narrowed = 0;
    for vocab in [20, 1000, 8192] {
        let logits: Vec<Vec<f32>> = numbers
            .rows(24, vocab)
            .into_iter()
            .map(|row| row.into_iter().map(|logit| logit * 6.0).collect())
            .collect();
        let params: Vec<SampleParams> = (0..24)
            .map(|row| {
                let plain = drawn(row, 0.6 + 0.05 * row as f32, 1.0, row % 3);
                match row % 8 {
                    0 => SampleParams { top_k: 1, ..plain },
                    1 => SampleParams { top_k: 7, ..plain },
                    2 => SampleParams {
                        top_k: vocab as u32 - 1,
                        ..plain
                    },
                    3 => SampleParams { min_p: 0.3, ..plain },
                    4 => SampleParams { min_p: 1.0, ..plain },
                    5 => SampleParams {
                        top_k: 9,
                        top_p: 0.6,
                        ..plain
                    },
                    6 => SampleParams {
                        top_k: 15,
                        top_p: 0.8,
                        min_p: 0.2,
                        ..plain
                    },
                    _ => SampleParams {
                        top_k: u32::MAX,
                        min_p: 1e-30,
                        ..plain
                    },
                }
            })
            .collect();
        let twin = |params: &[SampleParams]| {
            sample(&mut Rig(&mut CpuBackend::new(1 << 30, 1 << 30)), &logits, params)
        };
        let expected = twin(&params);
        for (row, result) in expected
            .iter()
            .enumerate()
            .filter(|(row, _)| matches!(row % 8, 0 | 4))
        {
            let largest = logits[row].iter().copied().fold(f32::MIN, f32::max);
            assert_eq!(logits[row][result.token as usize], largest, "row {row}");
        }
        let all: Vec<SampleParams> = (params.iter())
            .map(|&params| drawn(params.position - 1000, params.temperature, 1.0, 0))
            .collect();
        let free = twin(&all);
        narrowed += free
            .iter()
            .zip(&expected)
            .filter(|(free, kept)| free.token != kept.token)
            .count();
        on_every_kernel(|device| compare(&mut Rig(device), &logits, &params, &expected));
    }
    assert!(narrowed > 20, "thresholds changed {narrowed} tokens only");
}

#[test]
fn a_copy_decides_on_the_token_and_on_nothing_else() {
    let numbers = &mut Numbers::new(22);
    let logits = with_copy(numbers.rows(3, 40));
    let copied = |params: SampleParams, copy| SampleParams { copy, ..params };
    for (own, copy) in [(SampleParams::greedy(5), 3), (drawn(1, 0.7, 0.9, 4), 3)] {
        let plain = sample(&mut Rig(&mut *device()), &logits[..1], &[own])[0].clone();
        let of_copy = sample(&mut Rig(&mut *device()), &logits[3..], &[own])[0].clone();
        let mut twin = CpuBackend::new(1 << 30, 1 << 30);
        let params = [copied(own, copy), own, copied(own, 4), own];
        let found = sample(&mut Rig(&mut *device()), &logits, &params);
        let expected = sample(&mut Rig(&mut twin), &logits, &params);
        assert_eq!(found[0].top, plain.top);
        assert_eq!(found[0].token, of_copy.token);
        assert_eq!(
            found.iter().map(|row| row.token).collect::<Vec<_>>(),
            expected.iter().map(|row| row.token).collect::<Vec<_>>(),
        );
        let token = found[0].token as usize;
        let logit = f64::from(logits[0][token]);
        let total: f64 = logits[0].iter().map(|&logit| f64::from(logit).exp()).sum();
        assert!((f64::from(found[0].logprob) - (logit - total.ln())).abs() < 1e-4);
    }
}

/// Rows of logits, and what is done to each.
struct Adjusting {
    logits: Vec<Vec<f32>>,
    lists: Vec<Vec<Adjustment>>,
    masks: Vec<Option<Vec<u32>>>,
}

impl Adjusting {
    fn new(seed: u64, vocab: usize) -> Self {
        let numbers = &mut Numbers::new(seed);
        let logits = numbers.rows(7, vocab);
        let most = vocab.min(700);
        let lengths = [0, 1, 2, most / 2, most, vocab.min(3), vocab];
        let lists = lengths.map(|length| {
            // A row has a token once.
            let length = length.min(vocab);
            let stride = vocab / length.max(1);
            let entries = (0..length).map(|entry| Adjustment {
                token: (entry * stride) as u32,
                bias: match entry % 5 {
                    0 => HELD_BACK,
                    1 => 0.0,
                    _ => 100.0 * numbers.float(),
                },
                repetition: 0.1 + 3.0 * numbers.float().abs(),
                penalty: 2.0 * numbers.float(),
            });
            entries.collect()
        });
        // Of two rows without a list one has a mask; some masks allow nothing, one only the last token.
        let words = mask_words(vocab as u32) as usize;
        let masks = (0..logits.len()).map(|row| match row {
            0 | 4 => None,
            1 => Some(vec![0; words]),
            2 => {
                let mut mask = vec![0; words];
                mask[words - 1] = 1 << ((vocab - 1) % 32);
                Some(mask)
            }
            _ => Some(
                (0..words)
                    .map(|_| numbers.bits() ^ (numbers.bits() << 11))
                    .collect(),
            ),
        });
        let masks = masks.collect();
        Self {
            logits,
            lists: lists.to_vec(),
            masks,
        }
    }
}

impl Case for Adjusting {
    fn rows(&self) -> usize {
        self.logits.len()
    }

    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>, order: &[usize], split: bool) -> Vec<Vec<u32>> {
        let (vocab, count) = (self.logits[0].len(), order.len() as u32);
        let mask_width = mask_words(vocab as u32) as usize;
        // The copies come after the rows, the last row's first.
        let room = vec![0.5_f32; vocab];
        let plain = order.iter().map(|&row| &self.logits[row]);
        let words: Vec<f32> = plain
            .chain(order.iter().map(|_| &room))
            .flatten()
            .copied()
            .collect();
        let logits = rig.words(&words);
        let calls: Vec<Vec<u32>> = match split {
            true => (0..count).map(|from| vec![from]).collect(),
            false => vec![(0..count).collect()],
        };
        for call in calls {
            let mut list = vec![Adjustment::none(0)];
            // A row of masks that nobody has comes first.
            let mut masks = vec![0xaaaa_aaaa_u32; mask_width];
            let rows: Vec<AdjustedRow> = (call.iter())
                .map(|&from| {
                    let own = &self.lists[order[from as usize]];
                    let first = list.len() as u32;
                    list.extend(own);
                    let mask = match &self.masks[order[from as usize]] {
                        None => NO_ROW,
                        Some(mask) => {
                            masks.extend(mask);
                            (masks.len() / mask_width - 1) as u32
                        }
                    };
                    AdjustedRow {
                        from,
                        to: 2 * count - 1 - from,
                        first,
                        count: own.len() as u32,
                        mask,
                        reserved: [0; 3],
                    }
                })
                .collect();
            let op = Adjust {
                logits: &logits,
                rows: &rig.words(&rows),
                adjustments: &rig.words(&list),
                masks: &rig.words(&masks),
                vocab: vocab as u32,
                count: rows.len() as u32,
            };
            rig.0.adjust(&op).expect("valid");
        }
        let found = rig.rows(&logits, 2 * order.len(), vocab);
        let (plain, copies) = found.split_at(order.len());
        for (&row, plain) in order.iter().zip(plain) {
            let bits: Vec<u32> = self.logits[row].iter().map(|logit| logit.to_bits()).collect();
            assert_eq!(plain, &bits, "row {row} itself");
        }
        copies.iter().rev().cloned().collect()
    }
}

#[test]
fn adjust_as_the_twin_does() {
    for (seed, vocab) in [(23, 1), (24, 20), (25, 257), (26, 8192)] {
        let case = Adjusting::new(seed, vocab);
        check(&format!("adjust of {vocab}"), &case, 1e-5);
    }
}

#[test]
fn a_masked_token_is_held_back_whatever_its_list_says() {
    let mut device = device();
    let rig = &mut Rig(&mut *device);
    let logits = rig.words(&[1.0_f32, -2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
    let row = AdjustedRow {
        from: 0,
        to: 1,
        first: 0,
        count: 2,
        mask: 1,
        reserved: [0; 3],
    };
    let lifted = |token| Adjustment {
        bias: 100.0,
        ..Adjustment::none(token)
    };
    let op = Adjust {
        logits: &logits,
        rows: &rig.words(&[row]),
        adjustments: &rig.words(&[lifted(1), lifted(2)]),
        masks: &rig.words(&[0b1111_u32, 0b1010]),
        vocab: 4,
        count: 1,
    };
    rig.0.adjust(&op).expect("valid");
    let found: Vec<f32> = rig.read(&logits).into_iter().map(f32::from_bits).collect();
    assert_eq!(found[4..], [HELD_BACK, 98.0, HELD_BACK, 4.0]);
}

#[test]
fn what_names_no_token_or_row_is_bounded() {
    let mut device = device();
    let rig = &mut Rig(&mut *device);
    let logits = rig.words(&[1.0_f32, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
    let row = AdjustedRow {
        from: 0,
        to: u32::MAX,
        first: 0,
        count: u32::MAX,
        mask: NO_ROW,
        reserved: [0; 3],
    };
    let entry = |token| Adjustment {
        bias: 1.0,
        ..Adjustment::none(token)
    };
    let op = Adjust {
        logits: &logits,
        rows: &rig.words(&[row]),
        adjustments: &rig.words(&[entry(2), entry(4), entry(u32::MAX)]),
        masks: &rig.words(&[0_u32]),
        vocab: 4,
        count: 1,
    };
    rig.0.adjust(&op).expect("valid");
    let found: Vec<f32> = rig.read(&logits).into_iter().map(f32::from_bits).collect();
    assert_eq!(found, [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 4.0, 4.0]);
    let small = Adjust { count: 2, ..op };
    assert!(small.check().is_err());
}

/// Mistral's whole vocabulary: many rounds of the kernel's loops, which an emulated device bounds.
#[test]
fn a_whole_vocabulary_is_sampled_as_the_twin_does() {
    const VOCAB: usize = 131_072;
    let logits: Vec<Vec<f32>> = Numbers::new(24)
        .rows(3, VOCAB)
        .into_iter()
        .map(|row| row.into_iter().map(|logit| logit * 6.0).collect())
        .collect();
    let params = [
        SampleParams::greedy(20),
        drawn(1, 0.7, 0.9, 20),
        SampleParams {
            top_k: 900,
            min_p: 0.01,
            ..drawn(2, 1.3, 0.8, 20)
        },
    ];
    let expected = sample(&mut Rig(&mut CpuBackend::new(1 << 30, 1 << 30)), &logits, &params);
    on_every_kernel(|device| compare(&mut Rig(device), &logits, &params, &expected));
}

#[test]
fn a_vocabulary_that_the_device_would_leave_half_done_is_refused() {
    const VOCAB: usize = 262_144;
    let rig = &mut Rig(&mut *device());
    let op = Sample {
        logits: &rig.zeros(VOCAB),
        params: &rig.words(&[SampleParams::greedy(1)]),
        output: &rig.zeros(SampleResult::bytes(1) as usize / 4),
        vocab: VOCAB as u32,
        rows: 1,
    };
    let sampled = rig.0.sample(&op);
    // A GPU does it.
    if rig.0.info().is_cpu {
        let said = sampled.expect_err("refused").to_string();
        assert!(said.contains("rounds") && said.contains("65535"), "{said}");
    } else {
        sampled.expect("sampled");
    }
}
