//! Sizes of workgroups and tiles. They are part of the device kind, as all that the shaders do.

use tramontane_model::footprint::{LEAST_ATTENTION_SPLIT, LEAST_PAIR_TILE, MOST_TILE_HEADS};

use super::device::Class;
use super::matrices::{Given, TILED_ROWS};
use crate::ops::{COLS_ALIGN, FP8_BLOCK, WeightFormat};

/// Sizes that depend on the class of the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tuning {
    /// Lanes that share a sum over columns.
    pub(super) lanes_k: u32,
    /// Neighbouring outputs of a workgroup of a matrix kernel.
    pub(super) lanes_n: u32,
    /// Outputs of a lane of the linear kernel: 1, 2 or 4.
    pub(super) outputs: u32,
    /// Rows of activations that a tile of a matrix kernel may hold, ascending from 1.
    pub(super) tiles: &'static [u32],
    /// Pairs (row, choice) of one expert that a tile may hold, ascending from 1.
    pub(super) pair_tiles: &'static [u32],
    /// Lanes of the kernels that take one element each.
    pub(super) lanes_each: u32,
    /// Lanes of a workgroup that reduces a row.
    pub(super) lanes_row: u32,
    /// Lanes of the query kernel.
    pub(super) lanes_query: u32,
    /// Lanes of attention.
    pub(super) lanes_attention: u32,
    /// Tokens of a split of attention, where that is not left to [`Self::attention_split`].
    pub(super) split: Option<u32>,
    /// Lanes of the router.
    pub(super) lanes_route: u32,
    /// Lanes of the kernels with one workgroup for very many elements.
    pub(super) lanes_wide: u32,
    /// Lanes that the sampler, which goes over a row of logits again and again, may have, ascending: the fewest with which
    /// the device comes to an end.
    pub(super) lanes_sample: &'static [u32],
    /// Rounds of all its loops together after which the device ends a lane of a shader, whatever is left to do.
    pub(super) most_rounds: Option<u32>,
    /// Codes of weights are decoded by way of f16.
    pub(super) halves: bool,
    /// What computes given rows with matrices.
    pub(super) given: Given,
    /// Large tiles that keep the device busy: where there are fewer, they are of fewer rows.
    pub(super) enough_tiles: u32,
    /// Subgroups have 8 lanes and a load costs as much as many sums: lanes read activations together.
    pub(super) shares_loads: bool,
}

// Plans have room for so many tiles, and the shaders write them unchecked.
const _: () = assert!(has_room_for_tiles(&Tuning::GPU) && has_room_for_tiles(&Tuning::CPU));
const _: () = assert!(4 * MOST_ATTENTION_BLOCKS <= MOST_TILE_HEADS);

/// Most heads of a workgroup of attention, in fours.
const MOST_ATTENTION_BLOCKS: u32 = 4;
/// Kernels of attention: what [`Tuning::attention_blocks`] may say.
pub(super) const ATTENTION_BLOCKS: [u32; 3] = [1, 2, MOST_ATTENTION_BLOCKS];

/// Workgroups that a large GPU has room for at a time, about, and a processor.
const ENOUGH_ON_GPUS: u32 = 256;
const ENOUGH_ON_PROCESSORS: u32 = 2;

/// Whether no tile of pairs is smaller than plans are made for.
const fn has_room_for_tiles(tuning: &Tuning) -> bool {
    let mut index = 0;
    while index < tuning.pair_tiles.len() {
        let rows = tuning.pair_tiles[index] as u64;
        if rows > 1 && rows < LEAST_PAIR_TILE {
            return false;
        }
        index += 1;
    }
    true
}

impl Tuning {
    const GPU: Self = Self {
        lanes_k: 32,
        lanes_n: 4,
        outputs: 2,
        tiles: &[1, 4, 8, 16],
        pair_tiles: &[1, 4, 16],
        lanes_each: 64,
        lanes_row: 256,
        lanes_query: 64,
        lanes_attention: 128,
        split: None,
        lanes_route: 32,
        lanes_wide: 256,
        lanes_sample: &[256],
        most_rounds: None,
        halves: true,
        given: Given::Tiled,
        enough_tiles: ENOUGH_ON_GPUS,
        shares_loads: false,
    };
    /// An emulated GPU: its barriers are dear, a vector holds neighbouring outputs, and a load costs as much as many sums:
    /// tiles are tall.
    const CPU: Self = Self {
        lanes_k: 1,
        lanes_n: 8,
        outputs: 4,
        tiles: &[1, 4, 8, 16],
        pair_tiles: &[1, 4, 8, 16],
        lanes_each: 32,
        lanes_row: 8,
        lanes_query: 32,
        lanes_attention: 128,
        split: None,
        lanes_route: 8,
        lanes_wide: 16,
        lanes_sample: &[16, 256],
        // llvmpipe: LP_MAX_TGSI_LOOP_ITERATIONS.
        most_rounds: Some(65_535),
        halves: true,
        given: Given::AsGenerated,
        enough_tiles: ENOUGH_ON_PROCESSORS,
        shares_loads: false,
    };
    const CPU_SHARING_LOADS: Self = Self {
        lanes_attention: 8,
        shares_loads: true,
        ..Self::CPU
    };

    const fn of(class: Class) -> Self {
        match class {
            Class::Gpu => Self::GPU,
            Class::Emulated => Self::CPU,
            Class::EmulatedSharingLoads => Self::CPU_SHARING_LOADS,
        }
    }

    /// Sizes for a class, on a device whose conversion of f16 is exact or not, with this for given rows.
    pub(super) fn new(class: Class, halves: bool, given: Given) -> Self {
        Self {
            halves,
            given,
            ..Self::of(class)
        }
    }

    /// The same for a processor, whatever the class.
    pub(super) fn on_processor(self) -> Self {
        Self {
            enough_tiles: ENOUGH_ON_PROCESSORS,
            ..self
        }
    }

    /// What computes given rows on devices of a class, where they have no cooperative matrices.
    pub(super) fn given(class: Class) -> Given {
        Self::of(class).given
    }

    /// Rows of a large tile where there are so many rows, or so many of an expert in the mean, and so many tiles beside each
    /// other. Sums are the same in both heights.
    pub(super) fn tiled_rows(&self, rows: u32, beside: u32) -> u32 {
        let [few, many] = TILED_ROWS;
        let tiles = rows.div_ceil(many).saturating_mul(beside);
        match rows <= few || tiles < self.enough_tiles {
            true => few,
            false => many,
        }
    }

    /// Rows of a tile where there are so many: the tallest tile that is at least half full, or 1.
    pub(super) fn tile_rows(&self, rows: u32) -> u32 {
        let fitting = self.tiles.iter().rev().find(|&&tile| rows * 2 > tile);
        fitting.copied().filter(|_| rows > 1).unwrap_or(1)
    }

    /// Pairs of a tile where so many are spread over so many experts: the tallest tile that an expert's pairs fill by three
    /// quarters in the mean, or the next taller than 1 where there are two of them. With fewer most experts have one.
    pub(super) fn pair_rows(&self, pairs: u32, experts: u32) -> u32 {
        let fill = |tile: u32| u64::from(pairs) * 4 > u64::from(experts) * u64::from(tile) * 3;
        let taller = self.pair_tiles.iter().copied().filter(|&tile| tile > 1);
        let least = taller.clone().min().unwrap_or(1);
        match taller.filter(|&tile| fill(tile)).max() {
            Some(tile) => tile,
            None if pairs > experts.saturating_mul(2) => least,
            None => 1,
        }
    }

    /// Neighbouring chunks of 16 columns that a lane takes in turn: of a matrix of `cols` columns, those that one word of
    /// scales is for, unless lanes share a sum.
    pub(super) fn run_chunks(&self, format: WeightFormat, cols: u32) -> u32 {
        let chunks = cols / COLS_ALIGN;
        match format {
            _ if self.lanes_k > 1 => 1,
            WeightFormat::Bf16 | WeightFormat::Fp8Tensor => chunks,
            WeightFormat::Fp8Block => FP8_BLOCK / COLS_ALIGN,
            WeightFormat::Nvfp4 if chunks.is_multiple_of(4) => 4,
            WeightFormat::Nvfp4 => 1,
        }
    }

    /// How many heads of a workgroup of attention share keys and values, in fours, where so many share them.
    pub(super) fn attention_blocks(group: u32) -> u32 {
        match group {
            0..=4 => 1,
            5..=8 => 2,
            _ => MOST_ATTENTION_BLOCKS,
        }
    }

    /// Rows of a workgroup of expanded attention, in fours, where a sequence has so many. Where lanes share loads sums are the
    /// same with any number; elsewhere their order is by how many lanes a block has.
    pub(super) fn expanded_blocks(&self, rows: u32) -> u32 {
        match self.shares_loads {
            true => Self::attention_blocks(rows),
            false => MOST_ATTENTION_BLOCKS,
        }
    }

    /// Tokens of a sequence, at multiples of so many, that a workgroup of attention sees: few on GPUs, which have room for
    /// many workgroups. Where lanes share loads, scores of all of them are in workgroup memory, 16 bytes for four heads.
    pub(super) fn attention_split(&self, blocks: u32) -> u32 {
        match (self.split, blocks) {
            (Some(split), _) => split,
            (None, _) if !self.shares_loads => LEAST_ATTENTION_SPLIT,
            (None, 0..=2) => 4 * LEAST_ATTENTION_SPLIT,
            (None, _) => 2 * LEAST_ATTENTION_SPLIT,
        }
    }

    /// Tokens of a tile of attention, where keys pass through workgroup memory: one or two for each lane of a block.
    pub(super) fn attention_tile(&self, blocks: u32) -> u32 {
        let block_lanes = self.lanes_attention / blocks;
        if blocks == 1 { block_lanes } else { 2 * block_lanes }
    }

    /// Groups of four columns of those keys at a time.
    pub(super) fn attention_chunk(&self, blocks: u32) -> u32 {
        if blocks <= 2 { 4 } else { 8 }
    }

    /// Outputs of a workgroup of the linear kernel.
    pub(super) fn linear_outputs(&self) -> u32 {
        self.lanes_n * self.outputs
    }

    /// Outputs of a lane of the gate and up kernel, which has two matrices.
    pub(super) fn gate_up_lane_outputs(&self) -> u32 {
        (self.outputs / 2).max(1)
    }

    /// Outputs of a workgroup of the gate and up kernel.
    pub(super) fn gate_up_outputs(&self) -> u32 {
        self.lanes_n * self.gate_up_lane_outputs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_tiles_are_of_fewer_rows_where_there_are_few() {
        let gpu = Tuning::new(Class::Gpu, true, Given::Tiled);
        // A router's outputs, 128 of them, and those of `wo`.
        assert_eq!(gpu.tiled_rows(2048, 1), 32);
        assert_eq!(gpu.tiled_rows(2048, 56), 64);
        assert_eq!(gpu.tiled_rows(256, 56), 32);
        assert_eq!(gpu.tiled_rows(32, u32::MAX), 32);
        assert_eq!(gpu.tiled_rows(33, u32::MAX), 64);
        assert_eq!(gpu.on_processor().tiled_rows(65, 1), 64);
    }
}
