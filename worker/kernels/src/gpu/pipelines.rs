//! The pipelines of a device: its kernels, all compiled when it is opened.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::kernel::{Binds, Kernel, Shader};
use super::tuning::Tuning;

/// A compiled kernel.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) binds: Binds,
    pub(super) bindings: wgpu::BindGroupLayout,
    pub(super) immediate_bytes: usize,
}

/// All kernels of a device.
#[derive(Debug)]
pub(super) struct Pipelines {
    compiled: HashMap<Kernel, Pipeline>,
}

/// A module and its layouts, shared by the kernels of one source.
struct Module {
    module: wgpu::ShaderModule,
    bindings: wgpu::BindGroupLayout,
    layout: wgpu::PipelineLayout,
}

impl Pipelines {
    /// Compiles every kernel. What the driver refuses is reported to the device's error handler.
    pub(super) fn compile(
        device: &wgpu::Device,
        tuning: &Tuning,
        cache: Option<&wgpu::PipelineCache>,
    ) -> Self {
        Self::compile_beside(device, tuning, cache, None)
    }

    /// The same for other sizes than those of `known`, whose kernels stay that do not depend on them.
    pub(super) fn resized(device: &wgpu::Device, tuning: &Tuning, known: (&Self, &Tuning)) -> Self {
        Self::compile_beside(device, tuning, None, Some(known))
    }

    fn compile_beside(
        device: &wgpu::Device,
        tuning: &Tuning,
        cache: Option<&wgpu::PipelineCache>,
        known: Option<(&Self, &Tuning)>,
    ) -> Self {
        let mut modules = HashMap::new();
        let mut compiled = HashMap::new();
        for kernel in Kernel::all(tuning) {
            let known = known.filter(|(_, of)| kernel.constants(of) == kernel.constants(tuning));
            if let Some(known) = known.and_then(|(known, _)| known.compiled.get(&kernel)) {
                compiled.insert(kernel, known.clone());
                continue;
            }
            let shader = kernel.shader(tuning);
            let module = match modules.entry(shader.source()) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(entry) => {
                    let module = module(device, &shader, entry.key());
                    entry.insert(module)
                }
            };
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(shader.label),
                layout: Some(&module.layout),
                module: &module.module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &kernel.constants(tuning),
                    zero_initialize_workgroup_memory: false,
                },
                cache,
            });
            let pipeline = Pipeline {
                pipeline,
                binds: shader.binds,
                bindings: module.bindings.clone(),
                immediate_bytes: shader.immediate_bytes,
            };
            compiled.insert(kernel, pipeline);
        }
        Self { compiled }
    }

    /// A compiled kernel.
    pub(super) fn get(&self, kernel: Kernel) -> &Pipeline {
        // `compile` has made every kernel that `Kernel::all` lists, and that is every one there is.
        &self.compiled[&kernel]
    }
}

fn module(device: &wgpu::Device, shader: &Shader, source: &str) -> Module {
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: Some(shader.label),
        source: wgpu::ShaderSource::Wgsl(source.into()),
    };
    #[expect(
        unsafe_code,
        reason = "bounds and loop checks cost more than the arithmetic on emulated GPUs"
    )]
    // SAFETY: every op checks its operands' sizes before it is recorded, indexes read from device memory are clamped or
    // skipped in the shaders, and every loop counts up to a bound that the checks have covered.
    let module =
        unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
    let Binds { reads, writes } = shader.binds;
    let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..reads + writes)
        .map(|binding| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage {
                    read_only: binding < reads,
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some(shader.label),
        entries: &entries,
    });
    let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(shader.label),
        bind_group_layouts: &[Some(&bindings)],
        immediate_size: u32::try_from(shader.immediate_bytes).unwrap_or(u32::MAX),
    });
    Module {
        module,
        bindings,
        layout,
    }
}
