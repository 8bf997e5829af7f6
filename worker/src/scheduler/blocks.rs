//! The cache's blocks: which are free, which are held by tables, and which are kept for what they hold.
//!
//! Ids only: the memory behind a block is each stage's own. Nothing here waits or preempts.
//!
//! **Invariant KV-2:** a block is free, or held by as many [`BlockTable`]s as it counts holders. A table cannot be
//! copied and is given back by value, so no block is freed twice. A block in the prefix cache is full and is never
//! written again before it is evicted; it is evicted only when no table holds it, and after every block that follows
//! it.

use std::collections::{BTreeMap, BTreeSet};

use super::prefix::{BlockHash, Content, Found, PrefixIndex};

/// Blocks of one sequence: block `i` holds positions `i * block_tokens ..`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BlockTable(Vec<u32>);

impl BlockTable {
    /// The block ids in order of position.
    pub(super) fn ids(&self) -> &[u32] {
        &self.0
    }
}

/// What became of a full block that was offered to the prefix cache.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offered {
    /// The table's block `i` is in the cache.
    Cached,
    /// Another block has the same content: the table now holds that one, and its own is here to be released once
    /// no step in flight uses it.
    Replaced(BlockTable),
    /// Its hash is taken by another content.
    Refused,
}

/// Gives out the lowest free block first, so that equal histories have equal tables; then blocks that are only kept
/// for what they hold, the least recently used first.
#[derive(Debug)]
pub(super) struct BlockPool {
    block_tokens: usize,
    total: u32,
    /// How many tables hold each block. Blocks from its end on were never given out.
    holders: Vec<u32>,
    /// Free blocks that were given out before and hold nothing of use.
    returned: BTreeSet<u32>,
    /// Cached blocks that no table holds, in the order in which they came free, and the same the other way.
    kept: BTreeMap<u64, u32>,
    kept_since: BTreeMap<u32, u64>,
    next_kept: u64,
    index: PrefixIndex,
    evictions: u64,
}

impl BlockPool {
    pub(super) fn new(block_tokens: u32, total: u32) -> Self {
        Self {
            block_tokens: block_tokens as usize,
            total,
            holders: Vec::new(),
            returned: BTreeSet::new(),
            kept: BTreeMap::new(),
            kept_since: BTreeMap::new(),
            next_kept: 0,
            index: PrefixIndex::default(),
            evictions: 0,
        }
    }

    pub(super) fn total(&self) -> usize {
        self.total as usize
    }

    /// Blocks that can be given out, those kept for what they hold included.
    pub(super) fn free(&self) -> usize {
        self.returned.len() + self.kept.len() + self.total() - self.holders.len()
    }

    /// Blocks that tables hold.
    pub(super) fn used(&self) -> usize {
        self.total() - self.free()
    }

    /// Free blocks that are kept for what they hold.
    pub(super) fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Blocks of the prefix cache given out for something else, since the start.
    pub(super) fn evictions(&self) -> u64 {
        self.evictions
    }

    /// How many tables hold the block.
    pub(super) fn holders(&self, block: u32) -> u32 {
        self.holders.get(block as usize).copied().unwrap_or(0)
    }

    pub(super) fn is_free(&self, block: u32) -> bool {
        let untouched = block as usize >= self.holders.len();
        untouched || self.returned.contains(&block) || self.kept_since.contains_key(&block)
    }

    pub(super) fn index(&self) -> &PrefixIndex {
        &self.index
    }

    /// Blocks that hold so many tokens of one sequence.
    pub(super) fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Free blocks that a sequence of so many tokens takes, `cached` of them being in the cache.
    pub(super) fn cost(&self, tokens: usize, cached: &[u32]) -> usize {
        let shared = cached.iter().filter(|&&block| self.holders(block) > 0);
        self.needed(tokens) - shared.count()
    }

    /// Grows a table until it covers so many tokens; `false` and no change if too few blocks are free.
    pub(super) fn cover(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = self.needed(tokens).saturating_sub(table.0.len());
        if missing > self.free() {
            return false;
        }
        table.0.extend((0..missing).filter_map(|_| self.take()));
        true
    }

    /// A table that begins with blocks of the cache.
    pub(super) fn share(&mut self, cached: &[u32]) -> BlockTable {
        for &block in cached {
            self.hold(block);
        }
        BlockTable(cached.to_vec())
    }

    /// Takes a table's blocks back. Its last block goes first, so that it is evicted before those it follows.
    pub(super) fn release(&mut self, table: BlockTable) {
        for block in table.0.into_iter().rev() {
            let Some(holders) = self.holders.get_mut(block as usize) else {
                continue;
            };
            *holders -= 1;
            #[cfg(feature = "deliberate-bugs")]
            if tramontane_sim::bugs::on(tramontane_sim::bugs::Bug::DoubleFree) {
                *holders = 0;
            }
            if *holders > 0 {
                continue;
            }
            if self.index.contains(block) {
                self.kept.insert(self.next_kept, block);
                self.kept_since.insert(block, self.next_kept);
                self.next_kept += 1;
            } else {
                self.returned.insert(block);
            }
        }
    }

    /// Takes block `at` of a table into the prefix cache: it is full, every stage has written it, and the blocks
    /// before it are in the cache.
    pub(super) fn offer(
        &mut self,
        table: &mut BlockTable,
        at: usize,
        hash: BlockHash,
        content: &Content<'_>,
    ) -> Offered {
        let own = table.0[at];
        match self.index.find(hash, content) {
            Found::Nothing => {
                self.index.insert(own, hash, content);
                Offered::Cached
            }
            Found::Block(block) if block == own => Offered::Cached,
            Found::Block(block) => {
                self.hold(block);
                table.0[at] = block;
                Offered::Replaced(BlockTable(vec![own]))
            }
            Found::Collision => Offered::Refused,
        }
    }

    fn take(&mut self) -> Option<u32> {
        let block = self.returned.pop_first().or_else(|| self.untouched());
        let block = block.or_else(|| self.evict())?;
        self.hold(block);
        Some(block)
    }

    fn untouched(&mut self) -> Option<u32> {
        let block = u32::try_from(self.holders.len()).ok()?;
        (block < self.total).then(|| {
            self.holders.push(0);
            block
        })
    }

    fn evict(&mut self) -> Option<u32> {
        let (_, block) = self.kept.pop_first()?;
        self.kept_since.remove(&block);
        self.index.remove(block);
        self.evictions += 1;
        Some(block)
    }

    fn hold(&mut self, block: u32) {
        if let Some(holders) = self.holders.get_mut(block as usize) {
            *holders += 1;
        }
        if let Some(since) = self.kept_since.remove(&block) {
            self.kept.remove(&since);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::prefix::Roles;
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

    /// Offers the table's first blocks, of one token each.
    fn offer(pool: &mut BlockPool, table: &mut BlockTable, tokens: &[u32]) -> Vec<Offered> {
        let salt: Arc<[u8]> = [].into();
        let (mut before, mut hash) = (None, None);
        let each = tokens.chunks(1).enumerate();
        each.map(|(at, tokens)| {
            let content = Content {
                before,
                salt: &salt,
                tokens,
                roles: Roles {
                    expanded: 0,
                    prompt: 1,
                },
            };
            let own = content.hash(&[0; 16], hash);
            let offered = pool.offer(table, at, own, &content);
            (before, hash) = (Some(table.ids()[at]), Some(own));
            offered
        })
        .collect()
    }

    #[test]
    fn what_nobody_holds_is_kept_until_it_is_needed_and_the_end_of_the_oldest_goes_first() {
        let mut pool = BlockPool::new(1, 4);
        let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
        assert!(pool.cover(&mut a, 2) && pool.cover(&mut b, 1));
        assert_eq!(
            offer(&mut pool, &mut a, &[5, 6]),
            [Offered::Cached, Offered::Cached]
        );
        assert_eq!(offer(&mut pool, &mut b, &[9]), [Offered::Cached]);
        pool.release(a);
        pool.release(b);
        assert_eq!((pool.used(), pool.free(), pool.kept()), (0, 4, 3));
        let mut c = pool.share(&[0]);
        assert_eq!((pool.used(), pool.kept()), (1, 2));
        assert!(pool.cover(&mut c, 3), "one untouched block and one kept one");
        assert_eq!((c.ids(), pool.evictions()), (&[0, 3, 1][..], 1));
        assert!(!pool.cover(&mut c, 5));
        assert!(pool.cover(&mut c, 4));
        assert_eq!((pool.evictions(), pool.free()), (2, 0));
        pool.release(c);
        assert_eq!((pool.used(), pool.kept()), (0, 1));
    }

    #[test]
    fn what_was_computed_twice_is_held_once() {
        let mut pool = BlockPool::new(1, 4);
        let (mut a, mut b) = (BlockTable::default(), BlockTable::default());
        assert!(pool.cover(&mut a, 1) && pool.cover(&mut b, 1));
        offer(&mut pool, &mut a, &[5]);
        let mut offered = offer(&mut pool, &mut b, &[5]);
        assert_eq!((b.ids(), pool.holders(0), pool.used()), (&[0][..], 2, 2));
        let Some(Offered::Replaced(own)) = offered.pop() else {
            panic!("not replaced");
        };
        pool.release(own);
        assert_eq!((pool.used(), pool.kept()), (1, 0));
        pool.release(a);
        pool.release(b);
        assert_eq!((pool.used(), pool.kept(), pool.free()), (0, 1, 4));
    }
}
