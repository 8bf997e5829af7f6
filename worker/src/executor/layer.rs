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
            expanded: &self.plan.expanded,
            table_rows: self.plan.table_rows,
            table_width: self.plan.table_width,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use tramontane_kernels::bench::{Probe, Recorded, ops_of_layer};
    use tramontane_kernels::figures::Part;
    use tramontane_kernels::reference::{CpuBackend, CpuBuffer};
    use tramontane_model::ids::{
        DeviceIndex, DeviceRef, Generation, Origin, ReplicaId, SequenceId, StepId, WorkerId,
    };
    use tramontane_model::placement::{
        ExpertGroup, ExpertRange, KvFormat, KvShape, LayerRange, Replica, Stage,
    };
    use tramontane_model::sampling::SamplingParams;
    use tramontane_model::step::{Opening, RowRole, SequenceChunk, StepBatch, StepBounds};

    use crate::executor::{AllExpertsHere, Executor, ExecutorOptions, StageInput};
    use crate::weights::{DeviceSlices, LoadProgress, LoadWatch, ModelFiles};

    const ROWS: u32 = 3;
    /// Tokens of each sequence with its row.
    const CONTEXT: u32 = 101;
    const BLOCKS: u32 = CONTEXT.div_ceil(16);

    fn replica() -> (Replica, DeviceRef) {
        let device = DeviceRef {
            worker: WorkerId::new("w1").expect("an id"),
            device: DeviceIndex(0),
        };
        let replica = Replica {
            id: ReplicaId(1),
            generation: Generation(1),
            stages: vec![Stage {
                layers: LayerRange::new(0, 6).expect("layers"),
                owner: device.clone(),
                groups: vec![ExpertGroup {
                    experts: ExpertRange::new(0, 16).expect("experts"),
                    holder: device.clone(),
                }],
            }],
            kv: KvShape {
                block_tokens: 16,
                blocks: ROWS * BLOCKS,
                format: KvFormat::F32,
            },
            steps: StepBounds::default(),
        };
        (replica, device)
    }

    /// What of an op does not depend on values.
    fn known(op: &Recorded<CpuBuffer>) -> (&'static str, u32, u64, u64, Option<u64>) {
        let (cost, is_known) = (&op.cost, op.op != "experts");
        let weights = is_known.then_some(cost.weight_bytes);
        (op.op, op.rows, cost.input_bytes, cost.output_bytes, weights)
    }

    #[test]
    fn a_step_records_what_is_measured_of_its_layers() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/mini-large-3");
        let model = Arc::new(ModelFiles::open(&dir).expect("the small model"));
        let spec = model.spec.clone();
        let (replica, device) = replica();
        let timeout = Duration::from_secs(60);
        let backend = Probe::new(CpuBackend::new(1 << 30, 1 << 30));
        let mut executor = Executor::new(backend, model, ExecutorOptions { timeout });
        let slices = DeviceSlices::of(&replica, &device, &spec).expect("slices");
        let progress = LoadProgress::default();
        let watch = LoadWatch {
            progress: &progress,
            cancelled: &|| false,
        };
        executor.load(replica.fence(), &slices, &watch).expect("loaded");
        executor.backend.take();
        let chunk = |sequence: u32| SequenceChunk {
            sequence: SequenceId(sequence.into()),
            open: Some(Opening::new(Origin::NOBODY, &SamplingParams::GREEDY, &[], 0, 0)),
            first_position: CONTEXT - 1,
            tokens: vec![100 + sequence],
            role: RowRole::Generated,
            sample: true,
            scored: vec![],
            block_table: (0..BLOCKS).map(|block| sequence * BLOCKS + block).collect(),
        };
        let batch = StepBatch {
            fence: replica.fence(),
            step: StepId(1),
            chunks: (0..ROWS).map(chunk).collect(),
            closed: Vec::new(),
        };
        let deadline = Instant::now() + timeout;
        let ran = executor.run(&batch, StageInput::Embed, &mut AllExpertsHere, deadline);
        ran.expect("a step");
        let recorded: Vec<_> = executor.backend.take().iter().map(known).collect();
        let layer = |part| {
            let ops = ops_of_layer(&spec, part, ROWS, CONTEXT).expect("a layer");
            ops.iter().map(known).collect::<Vec<_>>()
        };
        let (dense, moe) = (layer(Part::DenseLayer), layer(Part::MoeLayer));
        let mut expected = dense;
        (1..6).for_each(|_| expected.extend(moe.iter().copied()));
        let ends = recorded.len() - 3;
        assert_eq!(recorded[1..ends], expected);
        let names = |of: &[_]| {
            of.iter()
                .map(|op: &(&'static str, u32, u64, u64, Option<u64>)| op.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&recorded[..1]), ["embed"]);
        assert_eq!(names(&recorded[ends..]), ["rms_norm", "linear", "sample"]);
    }
}
