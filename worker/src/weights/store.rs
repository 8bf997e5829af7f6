//! The weights that a device holds, by slice.
//!
//! A slice is loaded and dropped as a whole; one that stays in the next assignment stays on the device.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tramontane_model::placement::ExpertRange;

use super::ahead::Ahead;
use super::load::{Loader, UnfinishedBank};
use super::{DeviceSlices, LoadWatch, ModelFiles, WeightError, WeightSlice};
use tramontane_kernels::layers::{Head, OwnerLayer};
use tramontane_kernels::ops::{Backend, DeviceBuffer, ExpertBank, Matrix, Vector};

/// All weights on a device.
#[derive(Debug)]
pub struct WeightStore<B> {
    embedding: Option<Matrix<B>>,
    layers: BTreeMap<u32, OwnerLayer<B>>,
    experts: BTreeMap<(u32, ExpertRange), ExpertBank<B>>,
    head: Option<Head<B>>,
    /// A slice of experts of which some are there.
    unfinished: Option<UnfinishedBank<B>>,
}

impl<B> Default for WeightStore<B> {
    fn default() -> Self {
        Self {
            embedding: None,
            layers: BTreeMap::new(),
            experts: BTreeMap::new(),
            head: None,
            unfinished: None,
        }
    }
}

/// Counts what was read of the checkpoint, and what for.
fn count_read(purpose: &'static str, bytes: u64) {
    metrics::counter!("tramontane_weights_read_bytes_total", "for" => purpose).increment(bytes);
}

impl<B: DeviceBuffer> WeightStore<B> {
    /// The embedding, `[vocab, dim]`, if it is held.
    pub fn embedding(&self) -> Option<&Matrix<B>> {
        self.embedding.as_ref()
    }

    /// What the owner of a layer holds of it, if it is held.
    pub fn layer(&self, layer: u32) -> Option<&OwnerLayer<B>> {
        self.layers.get(&layer)
    }

    /// Routed experts of a layer, if they are held as a slice.
    pub fn experts(&self, layer: u32, experts: ExpertRange) -> Option<&ExpertBank<B>> {
        self.experts.get(&(layer, experts))
    }

    /// Norm after the last layer, if it is held.
    pub fn final_norm(&self) -> Option<&Vector<B>> {
        self.head.as_ref().map(|head| &head.norm)
    }

    /// Output matrix, if it is held: of its own, or the embedding.
    pub fn output(&self) -> Option<&Matrix<B>> {
        let head = self.head.as_ref()?;
        head.output.as_ref().or(self.embedding.as_ref())
    }

    /// Drops every slice that is not among `kept`.
    pub fn retain(&mut self, kept: &[WeightSlice]) {
        let kept: BTreeSet<&WeightSlice> = kept.iter().collect();
        if !kept.contains(&WeightSlice::Embedding) {
            self.embedding = None;
        }
        self.layers
            .retain(|&layer, _| kept.contains(&WeightSlice::Layer(layer)));
        self.experts
            .retain(|&(layer, experts), _| kept.contains(&WeightSlice::Experts { layer, experts }));
        if !kept.contains(&WeightSlice::Head) {
            self.head = None;
        }
        self.unfinished.take_if(|bank| !kept.contains(&bank.slice()));
    }

    /// Loads what is missing of what `slices` name. After an error, what was loaded stays: the next call goes on from
    /// there.
    pub fn load<D: Backend<Buffer = B>>(
        &mut self,
        backend: &mut D,
        model: &ModelFiles,
        slices: &DeviceSlices,
        watch: &LoadWatch<'_>,
    ) -> Result<(), WeightError> {
        let (held, missing): (Vec<_>, Vec<_>) =
            slices.weights().into_iter().partition(|&slice| self.holds(slice));
        let bytes_of = |slices: &[WeightSlice]| slices.iter().map(|slice| slice.bytes(&model.bytes)).sum();
        let (held_bytes, read_bytes): (u64, u64) = (bytes_of(&held), bytes_of(&missing));
        watch
            .progress
            .begin(Instant::now(), held_bytes, held_bytes + read_bytes);
        let ahead = Ahead::new(model, &missing);
        let began = Instant::now();
        std::thread::scope(|scope| {
            let _reading = ahead.until_dropped();
            ahead.start(scope);
            let mut loader = Loader::new(backend, model, watch, Some(&ahead));
            self.load_all(&mut loader, held_bytes, &missing)
        })?;
        if read_bytes > 0 {
            let took = began.elapsed();
            let bytes_per_second = (read_bytes as f64 / took.as_secs_f64().max(1e-9)) as u64;
            let past_cache_bytes = ahead.direct_bytes();
            tracing::info!(
                read_bytes,
                past_cache_bytes,
                ?took,
                bytes_per_second,
                "weights are on the device"
            );
        }
        Ok(())
    }

    fn load_all<D: Backend<Buffer = B>>(
        &mut self,
        loader: &mut Loader<'_, D>,
        held_bytes: u64,
        missing: &[WeightSlice],
    ) -> Result<(), WeightError> {
        let mut loaded_bytes = held_bytes;
        for &slice in missing {
            let bytes = slice.bytes(&loader.model().bytes);
            self.add(loader, slice)?;
            count_read("placement", bytes);
            loaded_bytes += bytes;
            loader.progress().set(loaded_bytes);
        }
        Ok(())
    }

    /// Goes on loading a slice that no placement asks for, if it is not held: all of it, but one record at a time of
    /// experts, which may be much.
    pub fn load_copy<D: Backend<Buffer = B>>(
        &mut self,
        backend: &mut D,
        model: &ModelFiles,
        slice: WeightSlice,
        watch: &LoadWatch<'_>,
    ) -> Result<(), WeightError> {
        if self.holds(slice) {
            return Ok(());
        }
        let mut loader = Loader::new(backend, model, watch, None);
        match slice {
            WeightSlice::Experts { layer, experts } => {
                let mut bank = self.begun(&mut loader, layer, experts)?;
                match loader.add_expert(&mut bank) {
                    Ok(true) => drop(self.experts.insert((layer, experts), bank.finish()?)),
                    Ok(false) => {
                        self.unfinished = Some(bank);
                        return Ok(());
                    }
                    Err(WeightError::Cancelled) => {
                        self.unfinished = Some(bank);
                        return Err(WeightError::Cancelled);
                    }
                    Err(error) => return Err(error),
                }
            }
            WeightSlice::Embedding | WeightSlice::Layer(_) | WeightSlice::Head => {
                self.add(&mut loader, slice)?;
            }
        }
        count_read("standby", slice.bytes(&model.bytes));
        Ok(())
    }

    /// Whether memory has been taken for a slice that is not all there.
    pub fn has_begun(&self, slice: WeightSlice) -> bool {
        self.unfinished.as_ref().is_some_and(|bank| bank.slice() == slice)
    }

    /// The bank that was begun for these experts, or a new one in place of whatever was begun.
    fn begun<D: Backend<Buffer = B>>(
        &mut self,
        loader: &mut Loader<'_, D>,
        layer: u32,
        experts: ExpertRange,
    ) -> Result<UnfinishedBank<B>, WeightError> {
        let begun = self.has_begun(WeightSlice::Experts { layer, experts });
        match self.unfinished.take().filter(|_| begun) {
            Some(bank) => Ok(bank),
            None => loader.begin_bank(layer, experts),
        }
    }

    /// Whether a slice is held.
    pub fn holds(&self, slice: WeightSlice) -> bool {
        match slice {
            WeightSlice::Embedding => self.embedding.is_some(),
            WeightSlice::Layer(layer) => self.layers.contains_key(&layer),
            WeightSlice::Experts { layer, experts } => self.experts.contains_key(&(layer, experts)),
            WeightSlice::Head => self.head.is_some(),
        }
    }

    fn add<D: Backend<Buffer = B>>(
        &mut self,
        loader: &mut Loader<'_, D>,
        slice: WeightSlice,
    ) -> Result<(), WeightError> {
        match slice {
            WeightSlice::Embedding => self.embedding = Some(loader.embedding()?),
            WeightSlice::Layer(layer) => {
                self.layers.insert(layer, loader.layer(layer)?);
            }
            WeightSlice::Experts { layer, experts } => {
                let mut bank = self.begun(loader, layer, experts)?;
                while !loader.add_expert(&mut bank)? {}
                self.experts.insert((layer, experts), bank.finish()?);
            }
            WeightSlice::Head => self.head = Some(loader.head()?),
        }
        Ok(())
    }
}
