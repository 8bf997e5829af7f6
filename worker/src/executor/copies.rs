//! Copies of weights that a device keeps for others, beside what it computes with.
//!
//! They are loaded piece by piece, when the device has nothing else to do, and are the first to go where memory is short.

use tramontane_model::members::StandbyReport;

use super::DeviceError;
use super::run::Executor;
use crate::weights::{DeviceSlices, LoadWatch, WeightError, WeightSlice};
use tramontane_kernels::ops::Backend;

impl<D: Backend> Executor<D> {
    /// Keeps these slices beside what is computed with, in place of the copies of before: what is not among them is
    /// dropped, what is missing is for [`Executor::load_copy`].
    pub fn keep_copies(&mut self, slices: &[WeightSlice]) {
        self.copies = slices.to_vec();
        self.retain();
    }

    /// The first copy that is missing; none once all are there.
    pub fn missing_copy(&self) -> Option<WeightSlice> {
        let mut copies = self.copies.iter().copied();
        copies.find(|&slice| !self.weights.holds(slice))
    }

    /// Goes on loading a copy, unless it takes memory that the device does not have.
    pub fn load_copy(&mut self, slice: WeightSlice, watch: &LoadWatch<'_>) -> Result<(), WeightError> {
        let (held, memory) = (self.held_bytes(), self.info().memory_bytes);
        let planned = held.saturating_add(slice.bytes(&self.model.bytes));
        if planned > memory && !self.weights.has_begun(slice) {
            return Err(WeightError::TooLarge { planned, memory });
        }
        let backend = &mut self.backend;
        self.weights.load_copy(backend, &self.model, slice, watch)?;
        let submitted = backend.submit();
        submitted.map_err(|source| WeightError::Device {
            tensor: format!("{slice:?}"),
            source,
        })
    }

    /// Makes the first steps of a placement that the device may be given, on copies that are there: what drivers do at
    /// first use is then done. Only while the device has no placement; nothing is done where memory is short.
    pub fn rehearse(&mut self, slices: &DeviceSlices) -> Result<(), DeviceError> {
        let held = slices.weights();
        let is_there = held.iter().all(|&slice| self.weights.holds(slice));
        let beside = slices.planned_bytes(&self.model.spec, &self.model.bytes);
        let beside = beside.saturating_sub(slices.weight_bytes(&self.model.bytes));
        let room = self.info().memory_bytes.saturating_sub(self.held_bytes());
        if self.placed().is_some() || !is_there || beside > room {
            return Ok(());
        }
        self.place_alone(slices)?;
        let rehearsed = self.warm_up();
        self.release();
        rehearsed
    }

    /// Bytes of copies that are there, and of those that are to be; what is computed with does not count.
    pub fn copied_bytes(&self) -> StandbyReport {
        let own = self.copies.iter().filter(|slice| !self.computes.contains(slice));
        let mut copied = StandbyReport::default();
        for slice in own {
            let bytes = slice.bytes(&self.model.bytes);
            copied.total_bytes = copied.total_bytes.saturating_add(bytes);
            if self.weights.holds(*slice) {
                copied.loaded_bytes = copied.loaded_bytes.saturating_add(bytes);
            }
        }
        copied
    }

    /// Gives up copies, the last first, until they take no more than `room` bytes.
    pub(super) fn fit_copies(&mut self, room: u64) {
        while self.copied_bytes().total_bytes > room && self.copies.pop().is_some() {}
        self.retain();
    }

    /// Drops what is neither computed with nor kept.
    pub(super) fn retain(&mut self) {
        let kept: Vec<WeightSlice> = self.computes.iter().chain(&self.copies).copied().collect();
        self.weights.retain(&kept);
    }
}
