//! How long the device takes for what is recorded: by its own clock where that can be trusted, else by the host's.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::probe::Probe;
use crate::figures;
use crate::gpu::{GpuBackend, Marks};
use crate::ops::{Backend, OpError};

/// Longest wait for one call.
const TIMEOUT: Duration = Duration::from_secs(600);
/// What both clocks are compared over, at least, and how often at most: others may have the host's processors meanwhile.
const COMPARED: Duration = Duration::from_millis(40);
const COMPARISONS: u32 = 12;
/// The device's share of the host's time, which has the submit in it.
const AGREEMENT: RangeInclusive<f64> = 0.8..=1.01;

/// Times calls.
#[derive(Debug)]
pub(super) struct Stopwatch {
    /// There if the device has a clock that can be trusted.
    marks: Option<Marks>,
    /// What was found of the device's clock.
    pub(super) finding: String,
}

/// Something to record.
pub(super) type Record<'a> = dyn FnMut(&mut Probe<GpuBackend>) -> Result<(), OpError> + 'a;

/// Waits until everything recorded has run.
pub(super) fn finish(device: &mut Probe<GpuBackend>) -> Result<(), OpError> {
    device.read(&[], Instant::now() + TIMEOUT).map(|_| ())
}

impl Stopwatch {
    /// Compares the device's clock with the host's, over calls of `work`.
    pub(super) fn new(device: &mut Probe<GpuBackend>, work: &mut Record<'_>) -> Result<Self, OpError> {
        let Some(marks) = device.inner().marks(2)? else {
            return Ok(Self {
                marks: None,
                finding: "the device has no clock".to_owned(),
            });
        };
        let mut calls = 1;
        let mut finding = String::new();
        for _ in 0..COMPARISONS {
            finish(device)?;
            let started = Instant::now();
            device.inner().mark(&marks, 0);
            for _ in 0..calls {
                work(device)?;
            }
            device.inner().mark(&marks, 1);
            let times = device.inner().read_marks(&marks, 2, started + TIMEOUT)?;
            let (by_device, by_host) = (times.get(1).copied().unwrap_or(0.0), started.elapsed());
            let share = by_device / by_host.as_secs_f64();
            finding = format!(
                "over {:.1} ms of the host's the device's said {:.1} ms",
                by_host.as_secs_f64() * 1e3,
                by_device * 1e3
            );
            if by_host < COMPARED {
                calls *= 4;
            } else if AGREEMENT.contains(&share) {
                let marks = Some(marks);
                return Ok(Self { marks, finding });
            }
        }
        let marks = None;
        Ok(Self { marks, finding })
    }

    pub(super) fn clock(&self) -> figures::Clock {
        match self.marks {
            Some(_) => figures::Clock::Device,
            None => figures::Clock::Host,
        }
    }

    /// Seconds of a call of `work`, after `before`.
    pub(super) fn time(
        &self,
        device: &mut Probe<GpuBackend>,
        before: &mut Record<'_>,
        work: &mut Record<'_>,
    ) -> Result<f64, OpError> {
        before(device)?;
        match &self.marks {
            Some(marks) => {
                // A submission begins when those before it have ended: what comes before is none of the call's time.
                device.submit()?;
                device.inner().mark(marks, 0);
                work(device)?;
                device.inner().mark(marks, 1);
                let times = device.inner().read_marks(marks, 2, Instant::now() + TIMEOUT)?;
                Ok(times.get(1).copied().unwrap_or(0.0).max(1e-9))
            }
            None => {
                finish(device)?;
                let started = Instant::now();
                work(device)?;
                finish(device)?;
                Ok(started.elapsed().as_secs_f64())
            }
        }
    }
}
