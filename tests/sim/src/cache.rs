//! A stage that computes nothing but a hash of what its cache holds.
//!
//! A token made of these hashes depends on every row that its sequence sees and on each row's role: a lost, repeated or
//! misplaced row, a wrong role, or a block that two sequences hold makes another token.

use std::collections::BTreeMap;

use tramontane_model::step::{RowRole, SequenceChunk};

/// What a cache holds of one row.
pub type Cell = (u32, RowRole);

/// Mixes a value into a state.
pub fn mix(state: u64, value: u64) -> u64 {
    let mixed = (state ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// The state after a stage has read these rows.
pub fn read(state: u64, stage: usize, cells: impl Iterator<Item = Cell>) -> u64 {
    cells.fold(mix(state, stage as u64), |state, (token, role)| {
        mix(state, u64::from(token) * 3 + role as u64)
    })
}

/// One stage's cache.
#[derive(Clone, Debug)]
pub struct Cache {
    block_tokens: u32,
    cells: BTreeMap<(u32, u32), Cell>,
}

/// A row was read that nobody wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwritten {
    /// The block.
    pub block: u32,
    /// The position in the sequence.
    pub position: u32,
}

impl Cache {
    /// One that holds nothing.
    pub fn new(block_tokens: u32) -> Self {
        Self {
            block_tokens,
            cells: BTreeMap::new(),
        }
    }

    fn place(&self, chunk: &SequenceChunk, position: u32) -> (u32, u32) {
        let block = chunk.block_table[(position / self.block_tokens) as usize];
        (block, position % self.block_tokens)
    }

    /// Writes a chunk's rows where its block table says.
    pub fn write(&mut self, chunk: &SequenceChunk) {
        for (position, &token) in (chunk.first_position..).zip(&chunk.tokens) {
            let place = self.place(chunk, position);
            self.cells.insert(place, (token, chunk.role));
        }
    }

    /// Reads every row of the sequence up to the chunk's last one into the state.
    pub fn read(&self, chunk: &SequenceChunk, stage: usize, state: u64) -> Result<u64, Unwritten> {
        let end = chunk.first_position + chunk.tokens.len() as u32;
        let cells = (0..end).map(|position| {
            let place = self.place(chunk, position);
            let block = place.0;
            self.cells
                .get(&place)
                .copied()
                .ok_or(Unwritten { block, position })
        });
        let cells: Vec<Cell> = cells.collect::<Result<_, _>>()?;
        Ok(read(state, stage, cells.into_iter()))
    }

    /// What a block holds; nothing where nobody has written.
    pub fn block(&self, block: u32) -> Vec<Option<Cell>> {
        let cells = 0..self.block_tokens;
        cells
            .map(|cell| self.cells.get(&(block, cell)).copied())
            .collect()
    }
}
