//! What the driver reports out of turn: a lost device, and commands or memory refused.
//!
//! A lost device stays lost; other faults are told once, by the call that finds them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ops::OpError;

/// Faults of a device, filled by the driver's callbacks.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    lost: Option<String>,
    refused: Option<Refusal>,
}

/// A command that was refused.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The device had no memory for it.
    pub(super) out_of_memory: bool,
    /// What the driver said.
    pub(super) reason: String,
}

impl Faults {
    /// Installs the callbacks.
    pub(super) fn watch(device: &wgpu::Device) -> Self {
        let faults = Self::default();
        let of_loss = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            of_loss.lose(format!("{reason:?}: {message}"));
        });
        let of_errors = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let refusal = Refusal {
                out_of_memory: matches!(error, wgpu::Error::OutOfMemory { .. }),
                reason: error.to_string(),
            };
            // The first tells most; those after it often follow from it.
            of_errors.state().refused.get_or_insert(refusal);
        }));
        faults
    }

    /// Notes that the device is gone.
    pub(super) fn lose(&self, reason: String) {
        self.state().lost.get_or_insert(reason);
    }

    /// The error of a lost device, if it is lost.
    pub(super) fn check_lost(&self, device: &str) -> Result<(), OpError> {
        match &self.state().lost {
            None => Ok(()),
            Some(reason) => Err(OpError::DeviceLost {
                device: device.to_owned(),
                reason: reason.clone(),
            }),
        }
    }

    /// What was refused since the last call.
    pub(super) fn take_refusal(&self) -> Option<Refusal> {
        self.state().refused.take()
    }

    /// The error of a lost device or of a refused command.
    pub(super) fn check(&self, device: &str) -> Result<(), OpError> {
        self.check_lost(device)?;
        match self.take_refusal() {
            None => Ok(()),
            Some(refusal) => Err(OpError::Refused {
                device: device.to_owned(),
                reason: refusal.reason,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_device_stays_lost_and_a_refusal_is_told_once() {
        let faults = Faults::default();
        assert_eq!(faults.check("gpu"), Ok(()));
        faults.state().refused = Some(Refusal {
            out_of_memory: false,
            reason: "a fault".to_owned(),
        });
        assert!(matches!(faults.check("gpu"), Err(OpError::Refused { .. })));
        assert_eq!(faults.check("gpu"), Ok(()));
        faults.lose("unplugged".to_owned());
        faults.lose("later".to_owned());
        for _ in 0..2 {
            let lost = OpError::DeviceLost {
                device: "gpu".to_owned(),
                reason: "unplugged".to_owned(),
            };
            assert_eq!(faults.check("gpu"), Err(lost));
        }
    }
}
