//! The cache's blocks: which are free, and the tables that hold the others.
//!
//! Ids only: the memory behind a block is each stage's own. Nothing here waits or preempts.
//!
//! **Invariant KV-2:** a block is free or in exactly one [`BlockTable`]. A table cannot be copied and is given back by
//! value, so no block is freed twice.

use std::collections::BTreeSet;

/// Blocks of one sequence: block `i` holds positions `i * block_tokens ..`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BlockTable(Vec<u32>);

impl BlockTable {
    /// The block ids in order of position.
    pub(super) fn ids(&self) -> &[u32] {
        &self.0
    }
}

/// Gives out the lowest free block first, so that equal histories have equal tables.
#[derive(Debug)]
pub(super) struct BlockPool {
    block_tokens: usize,
    total: u32,
    /// Blocks from here on were never given out.
    untouched: u32,
    /// Free blocks below `untouched`.
    returned: BTreeSet<u32>,
}

impl BlockPool {
    pub(super) fn new(block_tokens: u32, total: u32) -> Self {
        Self {
            block_tokens: block_tokens as usize,
            total,
            untouched: 0,
            returned: BTreeSet::new(),
        }
    }

    pub(super) fn total(&self) -> usize {
        self.total as usize
    }

    pub(super) fn free(&self) -> usize {
        self.returned.len() + (self.total - self.untouched) as usize
    }

    pub(super) fn used(&self) -> usize {
        self.total() - self.free()
    }

    pub(super) fn is_free(&self, block: u32) -> bool {
        block >= self.untouched || self.returned.contains(&block)
    }

    /// Blocks that hold so many tokens of one sequence.
    pub(super) fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Grows a table until it covers so many tokens; `false` and no change if too few blocks are free.
    pub(super) fn cover(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = self.needed(tokens).saturating_sub(table.0.len());
        if missing > self.free() {
            return false;
        }
        for _ in 0..missing {
            let block = self.returned.pop_first().unwrap_or_else(|| {
                self.untouched += 1;
                self.untouched - 1
            });
            table.0.push(block);
        }
        true
    }

    /// Takes a table's blocks back.
    pub(super) fn release(&mut self, table: BlockTable) {
        self.returned.extend(table.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_block_comes_first() {
        let mut pool = BlockPool::new(4, 4);
        let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
        assert!(pool.cover(&mut a, 5) && pool.cover(&mut b, 1));
        assert_eq!((a.ids(), b.ids()), (&[0, 1][..], &[2][..]));
        pool.release(a);
        assert_eq!((pool.used(), pool.free()), (1, 3));
        assert!(pool.cover(&mut b, 16));
        assert_eq!(b.ids(), [2, 0, 1, 3]);
        assert!(!pool.is_free(0));
    }

    #[test]
    fn a_table_grows_whole_or_not_at_all() {
        let mut pool = BlockPool::new(4, 3);
        let mut table = BlockTable::default();
        assert!(pool.cover(&mut table, 4));
        assert!(!pool.cover(&mut table, 13));
        assert_eq!((table.ids(), pool.free()), (&[0][..], 2));
        assert!(pool.cover(&mut table, 4), "what is covered needs nothing");
        assert!(pool.cover(&mut table, 12));
        assert_eq!(pool.free(), 0);
        pool.release(table);
        assert_eq!(pool.used(), 0);
    }
}
