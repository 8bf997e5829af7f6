//! The prefix cache's index: which blocks hold which tokens, found by a keyed hash of all tokens so far.
//!
//! No blocks are given out or taken back here: that is `blocks`. No randomness: the host draws the key, once for each
//! scheduler, so that nobody can construct two prompts of one hash or tell from outside what others have asked.
//!
//! A hash only finds a candidate. What is served is compared in full: the block before, the salt, the tokens, and how
//! many of them were of which role (DET-1: keys and values of a generated row are not those of the same token given). A block
//! stays in the index no longer than the block before it does, so that this comparison reaches back to the first token.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::sync::Arc;

use siphasher::sip128::{Hasher128, SipHasher24};

/// Key of a scheduler's prefix cache: random, and told to nobody.
pub type CacheKey = [u8; 16];

/// Hash of a full block and everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BlockHash(u128);

/// What a full block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content<'a> {
    /// The block of the tokens before, itself in the index; none for the first.
    pub(super) before: Option<u32>,
    /// Keeps tenants apart: sequences share blocks only under the same salt.
    pub(super) salt: &'a Arc<[u8]>,
    pub(super) tokens: &'a [u32],
    /// What the tokens were computed as.
    pub(super) roles: Roles,
}

/// How many tokens of a block are prompt, those after them were emitted; and how many of these are expanded, from the
/// first on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Roles {
    pub(super) expanded: usize,
    pub(super) prompt: usize,
}

impl Content<'_> {
    /// Its hash after that of the block before.
    pub(super) fn hash(&self, key: &CacheKey, before: Option<BlockHash>) -> BlockHash {
        let mut hasher = SipHasher24::new_with_key(key);
        match before {
            None => {
                hasher.write_u8(0);
                hasher.write_u64(self.salt.len() as u64);
                hasher.write(self.salt);
            }
            Some(BlockHash(before)) => {
                hasher.write_u8(1);
                hasher.write_u128(before);
            }
        }
        hasher.write_u64(self.roles.expanded as u64);
        hasher.write_u64(self.roles.prompt as u64);
        for &token in self.tokens {
            hasher.write_u32(token);
        }
        BlockHash(hasher.finish128().as_u128())
    }
}

#[derive(Debug)]
struct Entry {
    hash: BlockHash,
    before: Option<u32>,
    salt: Arc<[u8]>,
    tokens: Box<[u32]>,
    roles: Roles,
}

impl Entry {
    fn content(&self) -> Content<'_> {
        Content {
            before: self.before,
            salt: &self.salt,
            tokens: &self.tokens,
            roles: self.roles,
        }
    }
}

/// What the index has for a block's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// A block with this very content.
    Block(u32),
    /// Another content: of no use, and in the way.
    Collision,
}

/// Blocks by the hash of what they hold.
#[derive(Debug, Default)]
pub(super) struct PrefixIndex {
    by_hash: BTreeMap<BlockHash, u32>,
    entries: BTreeMap<u32, Entry>,
}

impl PrefixIndex {
    pub(super) fn find(&self, hash: BlockHash, content: &Content<'_>) -> Found {
        match self.by_hash.get(&hash) {
            None => Found::Nothing,
            Some(block) if self.content(*block).as_ref() == Some(content) => Found::Block(*block),
            Some(_) => Found::Collision,
        }
    }

    /// What a block of the index holds.
    pub(super) fn content(&self, block: u32) -> Option<Content<'_>> {
        self.entries.get(&block).map(Entry::content)
    }

    pub(super) fn contains(&self, block: u32) -> bool {
        self.entries.contains_key(&block)
    }

    /// Blocks in the index.
    pub(super) fn blocks(&self) -> impl Iterator<Item = u32> {
        self.entries.keys().copied()
    }

    /// Takes in a block whose hash has been found to be free.
    pub(super) fn insert(&mut self, block: u32, hash: BlockHash, content: &Content<'_>) {
        let entry = Entry {
            hash,
            before: content.before,
            salt: Arc::clone(content.salt),
            tokens: content.tokens.into(),
            roles: content.roles,
        };
        self.by_hash.insert(hash, block);
        self.entries.insert(block, entry);
    }

    pub(super) fn remove(&mut self, block: u32) {
        if let Some(entry) = self.entries.remove(&block) {
            self.by_hash.remove(&entry.hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: CacheKey = [7; 16];

    impl Content<'_> {
        fn with_roles(self, expanded: usize, prompt: usize) -> Self {
            let roles = Roles { expanded, prompt };
            Self { roles, ..self }
        }
    }

    fn content<'a>(salt: &'a Arc<[u8]>, tokens: &'a [u32]) -> Content<'a> {
        Content {
            before: None,
            salt,
            tokens,
            roles: Roles {
                expanded: 0,
                prompt: tokens.len(),
            },
        }
    }

    #[test]
    fn everything_that_tells_blocks_apart_is_in_the_hash() {
        let (salt, other): (Arc<[u8]>, Arc<[u8]>) = ([1].into(), [2].into());
        let tokens = [3, 4, 5];
        let plain = content(&salt, &tokens);
        let hash = plain.hash(&KEY, None);
        assert_eq!(hash, plain.hash(&KEY, None));
        let others = [
            plain.hash(&[8; 16], None),
            plain.hash(&KEY, Some(hash)),
            content(&other, &tokens).hash(&KEY, None),
            content(&salt, &[3, 4, 6]).hash(&KEY, None),
            plain.with_roles(0, 2).hash(&KEY, None),
            plain.with_roles(2, 3).hash(&KEY, None),
        ];
        for (index, other) in others.iter().enumerate() {
            assert_ne!(hash, *other, "change {index} is not in the hash");
        }
    }

    #[test]
    fn another_content_of_the_same_hash_is_not_served() {
        let (salt, other): (Arc<[u8]>, Arc<[u8]>) = ([1].into(), [2].into());
        let tokens = [3, 4, 5];
        let held = content(&salt, &tokens);
        let hash = held.hash(&KEY, None);
        let mut index = PrefixIndex::default();
        assert_eq!(index.find(hash, &held), Found::Nothing);
        index.insert(9, hash, &held);
        assert_eq!(index.find(hash, &held), Found::Block(9));
        let others = [
            content(&other, &tokens),
            content(&salt, &[3, 4, 6]),
            held.with_roles(0, 2),
            held.with_roles(2, 3),
            Content {
                before: Some(1),
                ..held
            },
        ];
        for other in others {
            assert_eq!(index.find(hash, &other), Found::Collision, "{other:?}");
        }
        index.remove(9);
        assert_eq!(index.find(hash, &held), Found::Nothing);
        assert_eq!(index.blocks().count(), 0);
    }
}
