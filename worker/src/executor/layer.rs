//! One layer of the stage that the device owns.

use tramontane_kernels::layers::{LayerFeedForward, LayerPass};
use tramontane_kernels::ops::{Backend, OpError};

use super::DeviceError;
use super::run::StageRun;

impl<D: Backend> StageRun<'_, D> {
    /// Records a layer of the model. Reads back only where other devices compute experts.
    pub(super) fn layer(&mut self, layer: u32) -> Result<(), DeviceError> {
        if self.plan.order.is_empty() {
            return Ok(());
        }
        let Some(weights) = self.device.weights.layer(layer) else {
            // Loading has put every layer of the stage there.
            return Err(OpError::shape("layer", format!("layer {layer} is not loaded")).into());
        };
        let cache = &self.stage.caches[(layer - self.stage.slice.layers.start()) as usize];
        let mut pass = self.pass();
        pass.attention(weights, cache)?;
        pass.ffn_norm(weights)?;
        match &weights.feed_forward {
            LayerFeedForward::Dense(dense) => Ok(pass.dense(dense)?),
            LayerFeedForward::Moe { gate, shared } => self.moe(layer, gate, shared.as_ref()),
        }
    }

    pub(super) fn pass(&mut self) -> LayerPass<'_, D> {
        LayerPass {
            backend: &mut *self.device.backend,
            spec: &self.device.model.spec,
            buffers: &self.stage.buffers,
            rows: self.plan.rows,
            table_rows: self.plan.table_rows,
            table_width: self.plan.table_width,
        }
    }
}
