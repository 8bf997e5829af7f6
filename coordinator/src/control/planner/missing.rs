//! How many bytes are missing, and where.

use super::Missing;
use super::devices::Devices;
use super::search::Search;

/// More than any device can lack.
const MAX_EXTRA: u64 = 1 << 52;

impl Search<'_> {
    /// Why nothing fits.
    ///
    /// What the model needs is its weights, the smallest cache, the scratch of one owner for each device, as every
    /// device that takes part has some, and that of the sampler. Where that fits in all but its parts do not, what is missing is what would have
    /// to be added to every device alike.
    pub(super) fn missing(&self, devices: &Devices<'_>) -> Missing {
        let count = devices.len();
        let tokens = self.least_tokens();
        let owners = count.min(self.tiler.demand.layers()).max(1) as u128;
        let scratch = self.footprint().scratch;
        let scratch = owners * u128::from(scratch.owner_bytes) + u128::from(scratch.head_bytes);
        let needed = self.footprint().weight_bytes() + self.tiler.demand.kv_bytes(tokens) + scratch;
        let have = devices.most_memory(count);
        let needs = format!("the model needs {needed} bytes with a cache of {tokens} tokens");
        if let Some(lack) = needed.checked_sub(have).filter(|&lack| lack > 0) {
            return Missing {
                reason: format!("{needs}; {count} devices have {have}; {lack} are missing"),
                missing_bytes: u64::try_from(lack).unwrap_or(u64::MAX),
            };
        }
        let Some(extra) = self.extra(devices) else {
            return Missing {
                reason: format!(
                    "{needs}; {count} devices have {have}, but too few of them can bind the cache of one layer"
                ),
                missing_bytes: 0,
            };
        };
        let lack = u64::try_from(count).unwrap_or(u64::MAX).saturating_mul(extra);
        Missing {
            reason: format!(
                "{needs}; {count} devices have {have}, but its parts do not fit: {extra} are missing on each device, {lack} in all"
            ),
            missing_bytes: lack,
        }
    }

    /// What each device would need beside what it has; `None` if memory is not what is missing.
    fn extra(&self, devices: &Devices<'_>) -> Option<u64> {
        let most = devices.len().min(self.tiler.demand.layers());
        let shapes = [(most, 1), (most / 2, 2), (most / 4, 4), (1, 1)];
        let enough = |extra: u64| shapes.iter().any(|&shape| self.exists(devices, shape, extra));
        if !enough(MAX_EXTRA) {
            return None;
        }
        let (mut low, mut high) = (0, MAX_EXTRA);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            *(if enough(middle) { &mut high } else { &mut low }) = middle;
        }
        Some(high)
    }
}
