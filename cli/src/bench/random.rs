//! Random numbers that follow from a seed alone, the same on every machine.

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// One stream of numbers of a seed; streams of other names have nothing to do with it.
    pub(super) fn new(seed: u64, stream: u64, number: u64) -> Self {
        let mut start = Self(seed);
        for part in [stream, number] {
            start = Self(start.next() ^ part);
        }
        Self(start.next())
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to, but never, 1.
    pub(super) fn unit(&mut self) -> f64 {
        // The upper 53 bits: what a double holds.
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A whole number below `limit`, which is at least 1.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        // The product's upper half; what is uneven about it is 2^-32 and less for the limits here.
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// A whole number from `middle * (1 - spread)` to `middle * (1 + spread)`, at least 1.
    pub(super) fn around(&mut self, middle: u32, spread: f64) -> u32 {
        let (low, high) = (
            (f64::from(middle) * (1.0 - spread)).ceil().max(1.0) as u64,
            (f64::from(middle) * (1.0 + spread)).floor().max(1.0) as u64,
        );
        let found = low + self.below(high.saturating_sub(low) + 1);
        u32::try_from(found).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_paper() {
        // The published first outputs of SplitMix64 from 1234567.
        let mut random = Random(1_234_567);
        let found: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(
            found,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn streams_differ_and_repeat() {
        let first = |seed, stream, number| Random::new(seed, stream, number).next();
        assert_eq!(first(1, 2, 3), first(1, 2, 3));
        let all: std::collections::BTreeSet<u64> = (0..1000)
            .map(|at| first(at / 100, at / 10 % 10, at % 10))
            .collect();
        assert_eq!(all.len(), 1000);
    }

    #[test]
    fn lengths_lie_around_the_middle() {
        let mut random = Random::new(7, 0, 0);
        let lengths: std::collections::BTreeSet<u32> = (0..500).map(|_| random.around(10, 0.25)).collect();
        assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [8, 9, 10, 11, 12]);
        assert_eq!(random.around(10, 0.0), 10);
        assert_eq!(random.around(1, 0.9), 1);
        let all: std::collections::BTreeSet<u64> = (0..200).map(|_| random.below(4)).collect();
        assert_eq!(all.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!((0..1000).all(|_| (0.0..1.0).contains(&random.unit())));
    }
}
