//! What was recorded since the last submit, as plain data, and how it becomes one command buffer.

use std::fmt;

use super::kernel::Kernel;
use super::pipelines::Pipelines;

/// Words of immediates that a dispatch can have.
pub(super) const IMMEDIATE_WORDS: usize = super::device::IMMEDIATE_BYTES as usize / 4;

/// One step of what the device will do.
#[derive(Debug)]
pub(super) enum Command {
    Copy(Copy),
    Dispatch(Dispatch),
    Encode(Encode),
}

/// What a measurement puts between ops.
pub(super) struct Encode(pub(super) Box<dyn Fn(&mut wgpu::CommandEncoder) + Send>);

impl fmt::Debug for Encode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encode")
    }
}

/// Bytes from one buffer to another.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) from: wgpu::Buffer,
    pub(super) from_offset: u64,
    pub(super) to: wgpu::Buffer,
    pub(super) to_offset: u64,
    pub(super) bytes: u64,
}

/// Workgroups of a kernel.
#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) kernel: Kernel,
    pub(super) bindings: wgpu::BindGroup,
    pub(super) immediates: [u32; IMMEDIATE_WORDS],
    pub(super) workgroups: [u32; 3],
}

/// Encodes the commands in order; neighbouring dispatches share a pass.
pub(super) fn encode(
    device: &wgpu::Device,
    pipelines: &Pipelines,
    commands: &[Command],
) -> wgpu::CommandBuffer {
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let is_dispatch = |command: &Command| matches!(command, Command::Dispatch(_));
    for run in commands.chunk_by(|a, b| is_dispatch(a) && is_dispatch(b)) {
        let mut pass = None;
        for command in run {
            match command {
                Command::Copy(copy) => encoder.copy_buffer_to_buffer(
                    &copy.from,
                    copy.from_offset,
                    &copy.to,
                    copy.to_offset,
                    Some(copy.bytes),
                ),
                Command::Encode(Encode(encode)) => encode(&mut encoder),
                Command::Dispatch(dispatch) => {
                    let pass = pass.get_or_insert_with(|| {
                        let descriptor = wgpu::ComputePassDescriptor::default();
                        encoder.begin_compute_pass(&descriptor).forget_lifetime()
                    });
                    let pipeline = pipelines.get(dispatch.kernel);
                    let bytes: &[u8] = bytemuck::cast_slice(&dispatch.immediates);
                    pass.set_pipeline(&pipeline.pipeline);
                    pass.set_bind_group(0, &dispatch.bindings, &[]);
                    pass.set_immediates(0, &bytes[..pipeline.immediate_bytes]);
                    let [x, y, z] = dispatch.workgroups;
                    pass.dispatch_workgroups(x, y, z);
                }
            }
        }
    }
    encoder.finish()
}
