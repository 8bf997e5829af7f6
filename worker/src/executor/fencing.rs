//! Which placement a device works for, and what it refuses because of that.
//!
//! States and fences in, decisions out; the handle and the thread of a device act on them.
//!
//! **PL-3:** a device never goes back to a lower generation of the replica it works for.

use tramontane_model::ids::Fence;
use tramontane_model::members::DeviceState;
#[cfg(feature = "deliberate-bugs")]
use tramontane_sim::bugs::{Bug, on};

use super::DeviceError;

/// What the device was last told to hold.
#[derive(Debug, Default)]
pub struct Target {
    pub(super) fence: Option<Fence>,
    pub(super) stopping: bool,
}

impl Target {
    /// Whether an assignment is news; a lower generation of the same replica is refused.
    pub fn is_news(&self, asked: Fence) -> Result<bool, DeviceError> {
        let Some(serving) = self.fence.filter(|serving| serving.replica == asked.replica) else {
            return Ok(true);
        };
        #[cfg(feature = "deliberate-bugs")]
        if on(Bug::MissingGenerationCheck) {
            return Ok(asked != serving);
        }
        if asked.generation < serving.generation {
            return Err(DeviceError::Outdated { asked, serving });
        }
        Ok(asked != serving)
    }

    /// The device was told to hold this.
    pub fn hold(&mut self, asked: Fence) {
        self.fence = Some(asked);
    }

    /// The device was told to free a replica up to a generation. Says whether that is what it was to hold.
    pub fn free(&mut self, released: Fence) -> bool {
        let held = self.fence.is_some_and(|held| covers(released, held));
        if held {
            self.fence = None;
        }
        held
    }
}

/// Whether a release up to `released` covers `held`.
pub fn covers(released: Fence, held: Fence) -> bool {
    released.replica == held.replica && held.generation <= released.generation
}

/// Refuses work for `asked` unless the device serves it.
pub fn serving(state: &DeviceState, asked: Fence) -> Result<(), DeviceError> {
    if state.fence().is_some_and(|fence| fence != asked) {
        metrics::counter!("tramontane_fenced_messages_total").increment(1);
    }
    let serving = match state {
        DeviceState::Ready { fence } if *fence == asked => return Ok(()),
        #[cfg(feature = "deliberate-bugs")]
        DeviceState::Ready { fence } if fence.replica == asked.replica && on(Bug::MissingGenerationCheck) => {
            return Ok(());
        }
        DeviceState::Ready { fence } => format!("serves {fence}"),
        DeviceState::Idle => "holds nothing".to_owned(),
        DeviceState::Loading { fence, .. } => format!("is loading for {fence}"),
        DeviceState::Failed { fence, reason } => format!("failed for {fence}: {reason}"),
    };
    Err(DeviceError::Fenced { asked, serving })
}
