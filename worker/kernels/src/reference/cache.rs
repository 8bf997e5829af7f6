//! Twin of `shaders/shared/cache_f32.wgsl` and `cache_f16.wgsl`: cached values in the format of their cache.

use half::f16;
use tramontane_model::placement::KvFormat;

use super::CpuBuffer;
use crate::ops::KvCache;

/// A copy of all values.
pub(super) fn values(cache: &KvCache<CpuBuffer>) -> Vec<f32> {
    let words = cache.buffer().u32s(usize::MAX);
    match cache.shape().format {
        KvFormat::F32 => words.into_iter().map(f32::from_bits).collect(),
        KvFormat::F16 => {
            let halves = words
                .into_iter()
                .flat_map(|word| [word as u16, (word >> 16) as u16]);
            halves.map(|bits| f16::from_bits(bits).to_f32()).collect()
        }
    }
}

/// Replaces the values from `start` on; both their number and `start` are even, as widths are multiples of 16.
pub(super) fn store(cache: &KvCache<CpuBuffer>, start: usize, values: &[f32]) {
    match cache.shape().format {
        KvFormat::F32 => cache.buffer().store(start, values),
        KvFormat::F16 => {
            let largest = f16::MAX.to_f32();
            let bits = |value: f32| u32::from(f16::from_f32(value.clamp(-largest, largest)).to_bits());
            let mut words = cache.buffer().words();
            for (word, pair) in words.iter_mut().skip(start / 2).zip(values.chunks_exact(2)) {
                *word = bits(pair[0]) | bits(pair[1]) << 16;
            }
        }
    }
}
