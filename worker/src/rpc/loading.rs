//! How loading goes, in the metrics and, every few seconds, in the log: bytes, rate and time that is left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use metrics::{describe_gauge, gauge};
use tramontane_model::ids::DeviceIndex;
use tramontane_model::members::{DeviceReport, DeviceState, LoadReport};

/// How often a load that goes on is said.
const INTERVAL: Duration = Duration::from_secs(5);

const LOADED: &str = "tramontane_device_loaded_bytes";
const TOTAL: &str = "tramontane_device_load_bytes";
const RATE: &str = "tramontane_device_load_bytes_per_second";
const LEFT: &str = "tramontane_device_load_seconds_left";

/// Describes the metrics of loads to the recorder.
pub(crate) fn describe() {
    describe_gauge!(
        LOADED,
        "Bytes of its weights that a device that loads has; 0 if it does not load"
    );
    describe_gauge!(
        TOTAL,
        "Bytes of weights that a device that loads will have; 0 if it does not load"
    );
    describe_gauge!(
        RATE,
        "Bytes that a device that loads read in a second, in the mean since it began; 0 if it does not load"
    );
    describe_gauge!(
        LEFT,
        "Seconds until a device that loads has its weights, at that rate; 0 if it does not load or has read nothing yet"
    );
}

/// Shows how far a device is that loads, or that it does not.
pub(crate) fn show(labels: &[(&'static str, String)], state: &DeviceState) {
    let load = match state {
        DeviceState::Loading { load, .. } => *load,
        DeviceState::Idle | DeviceState::Ready { .. } | DeviceState::Failed { .. } => LoadReport::default(),
    };
    gauge!(LOADED, labels).set(load.loaded_bytes as f64);
    gauge!(TOTAL, labels).set(load.total_bytes as f64);
    gauge!(RATE, labels).set(load.bytes_per_second as f64);
    gauge!(LEFT, labels).set(load.seconds_left().unwrap_or(0) as f64);
}

/// Loads that go on, by device.
#[derive(Debug, Default)]
pub struct LoadLog(BTreeMap<DeviceIndex, Load>);

#[derive(Clone, Copy, Debug)]
struct Load {
    began: Instant,
    said: Instant,
}

impl LoadLog {
    /// Looks at what a device reports.
    pub fn look(&mut self, now: Instant, report: &DeviceReport) {
        let device = report.index;
        let DeviceState::Loading { fence, load } = report.state else {
            if let Some(load) = self.0.remove(&device)
                && let DeviceState::Ready { fence } = report.state
            {
                let took = now.saturating_duration_since(load.began);
                tracing::info!(%device, %fence, ?took, held_bytes = report.held_bytes, "loaded");
            }
            return;
        };
        let new = Load {
            began: now,
            said: now,
        };
        let log = self.0.entry(device).or_insert(new);
        if now.saturating_duration_since(log.said) < INTERVAL {
            return;
        }
        if let Some(left_s) = load.seconds_left() {
            log.said = now;
            let LoadReport {
                loaded_bytes,
                total_bytes,
                bytes_per_second,
            } = load;
            tracing::info!(
                %device, %fence, loaded_bytes, total_bytes, bytes_per_second, left_s, "loading"
            );
        }
    }
}
