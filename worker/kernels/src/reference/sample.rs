//! Twin of `shaders/sample.wgsl`.

use super::CpuBuffer;
use crate::ops::{MAX_TOP, PARAM_WORDS, Sample, SampleParams};

/// Philox 4x32 with 10 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let wide = |a: u32, b: u32| {
        let product = u64::from(a) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    };
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let (high0, low0) = wide(0xD251_1F53, c[0]);
        let (high1, low1) = wide(0xCD9E_8D57, c[2]);
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// Standard Gumbel noise of a token: `-ln(-ln u)`, `u` uniform in (0, 1) with 23 bits, of the generator keyed by the
/// seed at counter (token / 4, position, choice, 0).
pub fn gumbel(params: &SampleParams, token: u32) -> f64 {
    let counter = [token / 4, params.position, params.choice, 0];
    let words = philox4x32(counter, [params.seed_low, params.seed_high]);
    let bits = words[(token % 4) as usize] >> 9;
    let uniform = (f64::from(bits) + 0.5) / f64::from(1u32 << 23);
    -(-uniform.ln()).ln()
}

pub(super) fn run(op: &Sample<'_, CpuBuffer>) {
    let (rows, vocab) = (op.rows as usize, op.vocab as usize);
    let logits = op.logits.f32s(op.logit_rows() as usize * vocab);
    let all: Vec<&[f32]> = logits.chunks_exact(vocab).collect();
    let params: Vec<SampleParams> = op
        .params
        .u32s(rows * PARAM_WORDS)
        .chunks_exact(PARAM_WORDS)
        .map(|words| bytemuck::pod_read_unaligned(bytemuck::cast_slice(words)))
        .collect();
    for (row, (logits, params)) in all.iter().zip(&params).enumerate() {
        let copy = all.get(params.copy as usize).unwrap_or(logits);
        let words = sample_row(logits, copy, params);
        let start = row * words.len();
        for (target, word) in op.output.words()[start..].iter_mut().zip(words) {
            *target = word;
        }
    }
}

/// Token ids by falling logit, ties by rising id.
fn by_logit(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order
}

/// The token is chosen from `copy`, the rest is told of `logits`.
fn sample_row(logits: &[f32], copy: &[f32], params: &SampleParams) -> Vec<u32> {
    let logprobs = log_softmax(logits, 1.0);
    let (order, chosen) = (by_logit(logits), by_logit(copy));
    let token = if (params.forced as usize) < logits.len() {
        params.forced as usize
    } else if params.temperature > 0.0 {
        drawn(copy, params, &chosen)
    } else {
        chosen[0]
    };
    let top = &order[..(params.top as usize).min(MAX_TOP)];
    let mut words = vec![token as u32, (logprobs[token] as f32).to_bits()];
    let pad = MAX_TOP - top.len();
    words.extend(top.iter().map(|&id| id as u32));
    words.extend(std::iter::repeat_n(0, pad));
    words.extend(top.iter().map(|&id| (logprobs[id] as f32).to_bits()));
    words.extend(std::iter::repeat_n(0, pad));
    words
}

fn log_softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let scaled: Vec<f64> = logits
        .iter()
        .map(|&logit| f64::from(logit) / temperature)
        .collect();
    let largest = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scaled.iter().map(|logit| (logit - largest).exp()).sum();
    scaled.iter().map(|logit| logit - largest - total.ln()).collect()
}

/// Gumbel-max over what the thresholds leave; `order` is by falling logit.
fn drawn(logits: &[f32], params: &SampleParams, order: &[usize]) -> usize {
    let logprobs = log_softmax(logits, f64::from(params.temperature));
    let last = (params.top_k as usize)
        .checked_sub(1)
        .and_then(|last| order.get(last));
    let mut threshold = last.map_or(f32::NEG_INFINITY, |&id| logits[id]);
    if params.top_p < 1.0 {
        let left: Vec<usize> = order
            .iter()
            .copied()
            .filter(|&id| logits[id] >= threshold)
            .collect();
        let total: f64 = left.iter().map(|&id| logprobs[id].exp()).sum();
        let mut mass = 0.0;
        for id in left {
            mass += logprobs[id].exp();
            threshold = logits[id];
            if mass >= f64::from(params.top_p) * total {
                break;
            }
        }
    }
    let likely = logprobs[order[0]] + f64::from(params.min_p).ln();
    let kept = (0..logits.len()).filter(|&id| logits[id] >= threshold && logprobs[id] >= likely);
    let noisy = kept.map(|id| (logprobs[id] + gumbel(params, id as u32), id));
    let best = noisy.fold((f64::NEG_INFINITY, order[0]), |best, next| {
        if next.0 > best.0 { next } else { best }
    });
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the authors' Random123 library (kat_vectors).
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }
}
