//! A device that computes wrongly: it is refused before it holds anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tramontane_kernels::ops::{
    Adjust, Attention, Backend, Combine, DeviceBuffer, DeviceInfo, Embed, ExpandedAttention, Experts, GateUp,
    LatentWrite, Linear, OpError, Queries, ReadRange, RmsNorm, RotateQkv, Route, Sample, Values,
};
use tramontane_kernels::reference::{CpuBackend, CpuBuffer};
use tramontane_worker::executor::{DeviceError, Executor, ExecutorOptions};
use tramontane_worker::weights::{LoadProgress, ModelFiles};

use super::folder;
use super::held::{never_cancelled, whole_model};
use crate::cluster::replica;

/// The twins, but that the last value of every matrix product has another last bit.
struct Wrong(CpuBackend);

macro_rules! as_the_twins_do {
    ($($op:ident: $operands:ident),+ $(,)?) => {
        $(fn $op(&mut self, op: &$operands<'_, CpuBuffer>) -> Result<(), OpError> { self.0.$op(op) })+
    };
}

impl Backend for Wrong {
    type Buffer = CpuBuffer;

    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    fn max_binding_bytes(&self) -> u64 {
        self.0.max_binding_bytes()
    }

    fn held_bytes(&self) -> u64 {
        self.0.held_bytes()
    }

    fn alloc(&mut self, label: &str, bytes: u64) -> Result<CpuBuffer, OpError> {
        self.0.alloc(label, bytes)
    }

    fn write(&mut self, buffer: &CpuBuffer, offset: u64, bytes: &[u8]) -> Result<(), OpError> {
        self.0.write(buffer, offset, bytes)
    }

    fn submit(&mut self) -> Result<(), OpError> {
        self.0.submit()
    }

    fn read(&mut self, ranges: &[ReadRange<CpuBuffer>], deadline: Instant) -> Result<Vec<Vec<u8>>, OpError> {
        self.0.read(ranges, deadline)
    }

    fn linear(&mut self, op: &Linear<'_, CpuBuffer>) -> Result<(), OpError> {
        self.0.linear(op)?;
        let offset = op.output.bytes() - 4;
        let last = ReadRange {
            buffer: op.output.clone(),
            offset,
            bytes: 4,
        };
        let mut value = self
            .0
            .read(&[last], Instant::now() + Duration::from_secs(60))?
            .remove(0);
        value[0] ^= 1;
        self.0.write(op.output, offset, &value)
    }

    as_the_twins_do! {
        embed: Embed,
        rms_norm: RmsNorm,
        gate_up: GateUp,
        latent_write: LatentWrite,
        queries: Queries,
        rotate_qkv: RotateQkv,
        attention: Attention,
        expanded_attention: ExpandedAttention,
        values: Values,
        route: Route,
        experts: Experts,
        combine: Combine,
        adjust: Adjust,
        sample: Sample,
    }
}

#[test]
fn a_device_that_decodes_a_code_wrongly_loads_nothing() {
    for fixture in ["micro-bf16", "micro-nvfp4"] {
        let model = Arc::new(ModelFiles::open(&folder(fixture)).expect("a model"));
        let slices = whole_model(&model);
        let options = ExecutorOptions {
            timeout: Duration::from_secs(60),
        };
        let mut executor = Executor::new(Wrong(CpuBackend::new(1 << 30, 1 << 30)), model, options);
        let progress = LoadProgress::default();
        let fence = replica(1, &[(0, 1, "w1/0", &[])]).fence();
        let error = executor
            .load(fence, &slices, &never_cancelled(&progress))
            .expect_err("refused");
        assert!(matches!(error, DeviceError::Op(OpError::Wrong { .. })), "{error}");
        assert!(error.ends_device(), "the next assignment opens it anew");
        let expected = "device reference cannot be used: it decodes BF16 weights wrongly: ";
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!((executor.held_bytes(), progress.loaded_bytes()), (0, 0));
    }
}
