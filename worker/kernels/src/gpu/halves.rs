//! Does a device turn f16 into f32 exactly, subnormal numbers too? What decodes codes by way of f16 needs it; a device that
//! does not gets kernels that take them apart bit by bit, and computes the same.

use std::sync::mpsc::channel;
use std::time::Duration;

use half::f16;

/// Longest wait for the answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Every f16 that a code of e4m3 or e2m1 becomes, with both signs.
fn patterns() -> Vec<u16> {
    let magnitudes = (0..0x7f_u16)
        .map(|code| code << 7)
        .chain((0..8).map(|code| code << 9));
    magnitudes.flat_map(|bits| [bits, bits | 0x8000]).collect()
}

/// Tries every pattern. A device on which nothing can be tried has no exact ones.
pub(super) fn are_exact(device: &wgpu::Device, queue: &wgpu::Queue) -> bool {
    let patterns = patterns();
    convert(device, queue, &patterns).is_some_and(|found| {
        let expected = patterns
            .iter()
            .map(|&bits| f16::from_bits(bits).to_f32().to_bits());
        expected.eq(found)
    })
}

fn convert(device: &wgpu::Device, queue: &wgpu::Queue, patterns: &[u16]) -> Option<Vec<u32>> {
    let words: Vec<u32> = patterns
        .chunks(2)
        .map(|pair| u32::from(pair[0]) | u32::from(*pair.last().unwrap_or(&0)) << 16)
        .collect();
    let bytes = words.len() as u64 * 4;
    let buffer = |label, size, usage| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        })
    };
    let storage = wgpu::BufferUsages::STORAGE;
    let input = buffer("halves", bytes, storage | wgpu::BufferUsages::COPY_DST);
    let output = buffer("floats", 2 * bytes, storage | wgpu::BufferUsages::COPY_SRC);
    let readable = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let readback = buffer("floats to read", 2 * bytes, readable);
    queue.write_buffer(&input, 0, bytemuck::cast_slice(&words));
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some("halves"),
        source: wgpu::ShaderSource::Wgsl(include_str!("../../shaders/halves.wgsl").into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("halves"),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let bindings = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("halves"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[
            wgpu::BindGroupEntry {
                binding: 0,
                resource: input.as_entire_binding(),
            },
            wgpu::BindGroupEntry {
                binding: 1,
                resource: output.as_entire_binding(),
            },
        ],
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &bindings, &[]);
    pass.dispatch_workgroups((words.len() as u32).div_ceil(32), 1, 1);
    drop(pass);
    encoder.copy_buffer_to_buffer(&output, 0, &readback, 0, Some(2 * bytes));
    let index = queue.submit([encoder.finish()]);
    let (sender, mapped) = channel();
    readback.map_async(wgpu::MapMode::Read, .., move |result| {
        let _ = sender.send(result.is_ok());
    });
    let waited = device.poll(wgpu::PollType::Wait {
        submission_index: Some(index),
        timeout: Some(TIMEOUT),
    });
    if waited.is_err() || !mapped.try_recv().unwrap_or(false) {
        return None;
    }
    let view = readback.get_mapped_range(..).ok()?;
    let mut floats: Vec<u32> = bytemuck::pod_collect_to_vec(&view);
    floats.truncate(patterns.len());
    Some(floats)
}

#[cfg(test)]
mod tests {
    use super::super::{DeviceConfig, adapter, device, matrices::Given};
    use super::*;

    #[test]
    fn a_device_answers_for_every_code() {
        let (config, adapter) = (
            DeviceConfig::default(),
            adapter::choose(None).expect("an adapter"),
        );
        let kernels = (device::Class::of(&adapter), Given::AsGenerated);
        let open = device::open(&adapter, &config, kernels, None).expect("a device");
        let (device, queue) = (&open.device, &open.queue);
        // Finite codes of e4m3 and codes of e2m1, with both signs.
        let patterns = patterns();
        assert_eq!(patterns.len(), 2 * (127 + 8));
        let found = convert(device, queue, &patterns).expect("an answer");
        let normal = |&bits: &u16| f16::from_bits(bits).is_normal();
        for (bits, found) in patterns.iter().zip(found) {
            // Of subnormal numbers a device may make zeros; others it has to get right.
            if normal(bits) {
                assert_eq!(found, f16::from_bits(*bits).to_f32().to_bits(), "{bits:#06x}");
            }
        }
        // Mesa's converts in hardware, or as the hardware would.
        if open.info.is_cpu {
            assert!(are_exact(device, queue));
        }
    }
}
