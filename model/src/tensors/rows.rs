//! Rows of a matrix that are stored in another order than devices hold them.
//!
//! Only the rotated rows of queries and keys are: Hugging Face stores the first halves of all pairs, then the second
//! ones; devices hold pairs side by side.

use crate::spec::FP8_BLOCK;

/// A matrix whose rows come in heads, of which some rows are stored half by half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfSplit {
    /// Rows of a head before the rotated ones, which are its last.
    before: u32,
    /// Rotated rows of a head, an even number above 0.
    rotated: u32,
}

impl HalfSplit {
    /// Heads of `before` rows and then `rotated` ones.
    pub fn new(before: u32, rotated: u32) -> Self {
        Self { before, rotated }
    }

    /// The stored row that is row `row` on devices.
    pub fn stored(self, row: u32) -> u32 {
        let head_rows = self.before + self.rotated;
        let within = row % head_rows;
        match within.checked_sub(self.before) {
            Some(turned) => row - turned + turned / 2 + turned % 2 * (self.rotated / 2),
            None => row,
        }
    }

    /// A head whose rotated rows lie in two scale blocks, as the first of those rows and one past the last, of so many
    /// rows of the matrix: their scales cannot follow them.
    pub fn across_blocks(self, rows: u32) -> Option<(u32, u32)> {
        let head_rows = self.before + self.rotated;
        let mut heads = (0..rows / head_rows).map(|head| head * head_rows + self.before);
        heads
            .find(|start| start / FP8_BLOCK != (start + self.rotated - 1) / FP8_BLOCK)
            .map(|start| (start, start + self.rotated))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_side_by_side() {
        let split = HalfSplit::new(2, 6);
        let stored: Vec<u32> = (0..16).map(|row| split.stored(row)).collect();
        assert_eq!(stored, [0, 1, 2, 5, 3, 6, 4, 7, 8, 9, 10, 13, 11, 14, 12, 15]);
        let whole: Vec<u32> = (0..8).map(|row| HalfSplit::new(0, 4).stored(row)).collect();
        assert_eq!(whole, [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn rotated_rows_of_the_family_stay_in_their_scale_blocks() {
        // Large 3, Small 4, Ministral 3, the miniature; queries, then keys.
        for (split, rows) in [
            (HalfSplit::new(128, 64), 128 * 192),
            (HalfSplit::new(512, 64), 576),
            (HalfSplit::new(64, 64), 32 * 128),
            (HalfSplit::new(256, 64), 320),
            (HalfSplit::new(0, 128), 32 * 128),
            (HalfSplit::new(32, 16), 8 * 48),
        ] {
            assert_eq!(split.across_blocks(rows), None);
            let block = |row: u32| row / FP8_BLOCK;
            assert!((0..rows).all(|row| block(row) == block(split.stored(row))));
        }
        assert_eq!(HalfSplit::new(0, 96).across_blocks(288), Some((96, 192)));
    }
}
