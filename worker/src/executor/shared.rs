//! What the handles and the thread of a device share: its places, its account, and what it was last told.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant as TokioInstant, timeout_at};
use tramontane_model::ids::DeviceIndex;
use tramontane_model::members::StandbyReport;

use super::DeviceError;
use super::busy::Busy;
use super::fencing::Target;
use super::inbox::{ANSWER_PLACES, CONTROL_PLACES, EXPERT_PLACES, STEP_PLACES};
use crate::weights::LoadProgress;
use tramontane_kernels::ops::DeviceInfo;

/// Places in a device's inbox, by kind of entry.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) steps: Arc<Semaphore>,
    pub(super) experts: Arc<Semaphore>,
    pub(super) answers: Arc<Semaphore>,
    pub(super) controls: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            steps: places(STEP_PLACES),
            experts: places(EXPERT_PLACES),
            answers: places(ANSWER_PLACES),
            controls: places(CONTROL_PLACES),
        }
    }
}

/// What the handles and the thread of a device share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) index: DeviceIndex,
    pub(super) info: DeviceInfo,
    pub(super) max_binding_bytes: u64,
    pub(super) places: Places,
    pub(super) progress: LoadProgress,
    pub(super) held_bytes: AtomicU64,
    copies: Mutex<StandbyReport>,
    /// The latest order that makes an assignment void; what the thread loads for an earlier one is given up.
    pub(super) order: AtomicU64,
    /// What the thread is at.
    pub(super) busy: Busy,
    /// How long the device may take over one piece of work.
    pub(super) timeout: Duration,
    target: Mutex<Target>,
}

impl Shared {
    pub(super) fn new(
        index: DeviceIndex,
        info: DeviceInfo,
        max_binding_bytes: u64,
        timeout: Duration,
    ) -> Self {
        Self {
            index,
            info,
            max_binding_bytes,
            places: Places::default(),
            progress: LoadProgress::default(),
            held_bytes: AtomicU64::new(0),
            copies: Mutex::default(),
            order: AtomicU64::new(0),
            busy: Busy::default(),
            timeout,
            target: Mutex::default(),
        }
    }

    /// How far the device's copies are.
    pub(super) fn copies(&self) -> MutexGuard<'_, StandbyReport> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn target(&self) -> MutexGuard<'_, Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reserves a place, or says that there is none.
pub(super) fn try_place(
    places: &Arc<Semaphore>,
    queue: &'static str,
    limit: usize,
) -> Result<OwnedSemaphorePermit, DeviceError> {
    Arc::clone(places)
        .try_acquire_owned()
        .map_err(|_| DeviceError::Busy { queue, limit })
}

/// Reserves a place as soon as there is one; in the order of the calls.
pub(super) async fn place(
    places: &Arc<Semaphore>,
    what: &'static str,
    deadline: Instant,
) -> Result<OwnedSemaphorePermit, DeviceError> {
    match timeout_at(
        TokioInstant::from_std(deadline),
        Arc::clone(places).acquire_owned(),
    )
    .await
    {
        Ok(Ok(place)) => Ok(place),
        Ok(Err(_)) => Err(DeviceError::Stopped),
        Err(_) => Err(DeviceError::Deadline { what }),
    }
}
