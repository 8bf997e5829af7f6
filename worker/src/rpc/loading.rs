//! How loading goes, said every few seconds: bytes, rate and time that is left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tramontane_model::ids::DeviceIndex;
use tramontane_model::members::{DeviceReport, DeviceState};

/// How often a load that goes on is said.
const INTERVAL: Duration = Duration::from_secs(5);

/// Loads that go on, by device.
#[derive(Debug, Default)]
pub struct LoadLog(BTreeMap<DeviceIndex, Load>);

#[derive(Clone, Copy, Debug)]
struct Load {
    began: Instant,
    /// Bytes that the device held already.
    held: u64,
    said: Instant,
}

/// How fast a load goes, and how long it will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pace {
    bytes_per_second: u64,
    left: Duration,
}

impl Load {
    /// Nothing before the first bytes.
    fn pace(&self, now: Instant, loaded: u64, total: u64) -> Option<Pace> {
        let took = now.saturating_duration_since(self.began).as_secs_f64();
        let read = loaded.saturating_sub(self.held);
        if took <= 0.0 || read == 0 {
            return None;
        }
        let rate = read as f64 / took;
        let left = total.saturating_sub(loaded) as f64 / rate;
        Some(Pace {
            bytes_per_second: rate as u64,
            left: Duration::try_from_secs_f64(left).ok()?,
        })
    }
}

impl LoadLog {
    /// Looks at what a device reports.
    pub fn look(&mut self, now: Instant, report: &DeviceReport) {
        let device = report.index;
        let DeviceState::Loading {
            fence,
            loaded_bytes,
            total_bytes,
        } = report.state
        else {
            if let Some(load) = self.0.remove(&device)
                && let DeviceState::Ready { fence } = report.state
            {
                let took = now.saturating_duration_since(load.began);
                tracing::info!(%device, %fence, ?took, held_bytes = report.held_bytes, "loaded");
            }
            return;
        };
        // Nothing is known of the load yet.
        if total_bytes == 0 {
            return;
        }
        let new = Load {
            began: now,
            held: loaded_bytes,
            said: now,
        };
        let load = self.0.entry(device).or_insert(new);
        if now.saturating_duration_since(load.said) < INTERVAL {
            return;
        }
        load.said = now;
        if let Some(Pace {
            bytes_per_second,
            left,
        }) = load.pace(now, loaded_bytes, total_bytes)
        {
            let left_s = left.as_secs();
            tracing::info!(
                %device, %fence, loaded_bytes, total_bytes, bytes_per_second, left_s, "loading"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_what_was_read_since_the_load_began() {
        let began = Instant::now();
        let load = Load {
            began,
            held: 1000,
            said: began,
        };
        assert_eq!(load.pace(began, 1000, 5000), None);
        let after = began + Duration::from_secs(2);
        assert_eq!(load.pace(after, 1000, 5000), None);
        let expected = Pace {
            bytes_per_second: 1000,
            left: Duration::from_secs(2),
        };
        assert_eq!(load.pace(after, 3000, 5000), Some(expected));
    }
}
