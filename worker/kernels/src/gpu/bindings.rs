//! Bind groups, kept from step to step: a step binds the same buffers as the one before.
//!
//! A group keeps its buffers alive, so groups of buffers that were dropped are forgotten.

use std::collections::HashMap;

use super::kernel::{Binds, MAX_BINDINGS};
use super::memory::GpuBuffer;
use super::pipelines::Pipeline;

/// Most groups kept. A device of a full model uses some thousands.
const MAX_GROUPS: usize = 16_384;

/// How buffers are bound, and the ids of those bound; 0 where there is none.
type Key = (Binds, [u64; MAX_BINDINGS]);

/// Bind groups by what they bind.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    groups: HashMap<Key, wgpu::BindGroup>,
}

impl Bindings {
    /// The group that binds these buffers whole, in the order of the kernel's bindings: one for all kernels that bind them
    /// alike.
    pub(super) fn get(
        &mut self,
        device: &wgpu::Device,
        pipeline: &Pipeline,
        buffers: &[&GpuBuffer],
    ) -> wgpu::BindGroup {
        let mut ids = [0; MAX_BINDINGS];
        for (id, buffer) in ids.iter_mut().zip(buffers) {
            *id = buffer.id();
        }
        if self.groups.len() >= MAX_GROUPS {
            self.groups.clear();
        }
        let make = || {
            let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
                .zip(buffers)
                .map(|(binding, buffer)| wgpu::BindGroupEntry {
                    binding,
                    resource: buffer.raw().as_entire_binding(),
                })
                .collect();
            device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.bindings,
                entries: &entries,
            })
        };
        self.groups
            .entry((pipeline.binds, ids))
            .or_insert_with(make)
            .clone()
    }

    /// Drops the groups that bind one of these buffers.
    pub(super) fn forget(&mut self, dropped: &[u64]) {
        if !dropped.is_empty() {
            self.groups
                .retain(|(_, ids), _| !ids.iter().any(|id| dropped.contains(id)));
        }
    }
}
