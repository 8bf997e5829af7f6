//! The numbers that weights are made of.

/// Numbers that look random: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators").
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// One sequence for each name and seed.
    pub fn of(seed: u64, name: &str) -> Self {
        let mut random = Self(seed);
        for byte in name.bytes() {
            random.0 = random.next() ^ u64::from(byte);
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to 1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Fills the bytes.
    pub fn bytes(&mut self, bytes: &mut [u8]) {
        for step in bytes.chunks_mut(8) {
            let random = self.next().to_le_bytes();
            step.copy_from_slice(&random[..step.len()]);
        }
    }
}
