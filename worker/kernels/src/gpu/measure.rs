//! What measurements take of a device beside ops: its clock, copies, and a plain product of matrices.

use std::time::Instant;

use wgpu::Features;

use super::backend::GpuBackend;
use super::memory::GpuBuffer;
use crate::ops::{Backend, DeviceBuffer, OpError, ReadRange};

/// A clock that is read between commands.
pub(super) const CLOCK_FEATURES: Features =
    Features::TIMESTAMP_QUERY.union(Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);

/// Bytes of a time.
const TIME_BYTES: u64 = 8;

/// Times that the device notes between commands.
#[derive(Debug)]
pub struct Marks {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    noted: GpuBuffer,
}

impl GpuBackend {
    /// Room for so many times; none where the device has no clock.
    pub fn marks(&mut self, count: u32) -> Result<Option<Marks>, OpError> {
        if !self.device().features().contains(CLOCK_FEATURES) {
            return Ok(None);
        }
        let noted = self.alloc("times", u64::from(count) * TIME_BYTES)?;
        let set = self.device().create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("times"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let resolved = self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("times"),
            size: noted.bytes(),
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        Ok(Some(Marks { set, resolved, noted }))
    }

    /// Records that the device notes its time once what was recorded before has run. Each index once a submission.
    pub fn mark(&mut self, marks: &Marks, index: u32) {
        let set = marks.set.clone();
        self.encode(move |encoder| encoder.write_timestamp(&set, index));
    }

    /// Runs what was recorded; gives the first `count` times in seconds.
    pub fn read_marks(&mut self, marks: &Marks, count: u32, deadline: Instant) -> Result<Vec<f64>, OpError> {
        let (set, resolved) = (marks.set.clone(), marks.resolved.clone());
        let (to, bytes) = (marks.noted.raw().clone(), u64::from(count) * TIME_BYTES);
        self.encode(move |encoder| {
            encoder.resolve_query_set(&set, 0..count, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, &to, 0, Some(bytes));
        });
        let range = ReadRange {
            buffer: marks.noted.clone(),
            offset: 0,
            bytes,
        };
        let read = self.read(&[range], deadline)?.concat();
        let tick = f64::from(self.queue().get_timestamp_period()) * 1e-9;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&read);
        // Relative to the first, so that no precision is lost.
        let first = ticks.first().copied().unwrap_or(0);
        Ok(ticks
            .into_iter()
            .map(|time| time.wrapping_sub(first) as i64 as f64 * tick)
            .collect())
    }

    /// Records a copy of the first `bytes` of a buffer to another.
    pub fn copy(&mut self, from: &GpuBuffer, to: &GpuBuffer, bytes: u64) {
        let bytes = bytes.min(from.bytes()).min(to.bytes());
        let (from, to) = (from.raw().clone(), to.raw().clone());
        self.encode(move |encoder| encoder.copy_buffer_to_buffer(&from, 0, &to, 0, Some(bytes)));
    }

    /// A product of two matrices of `size` rows and columns in f32, by workgroups of this tile.
    pub fn plain_product(&mut self, size: u32, tile: PlainTile) -> Result<PlainProduct, OpError> {
        if !size.is_multiple_of(tile.rows) || !size.is_multiple_of(tile.cols) || !size.is_multiple_of(DEPTH) {
            let detail = format!("{size} rows and columns are no multiple of {tile:?}");
            return Err(OpError::shape("plain product", detail));
        }
        let bytes = u64::from(size) * u64::from(size) * 4;
        let operands: Vec<GpuBuffer> = ["left", "right", "product"]
            .into_iter()
            .map(|label| self.alloc(label, bytes))
            .collect::<Result<_, _>>()?;
        let values: Vec<f32> = (0..1_u32 << 18)
            .map(|index| (index as f32 * 0.37).sin())
            .collect();
        let block: &[u8] = bytemuck::cast_slice(&values);
        for operand in &operands[..2] {
            for start in (0..bytes).step_by(block.len()) {
                let length = block
                    .len()
                    .min(usize::try_from(bytes - start).unwrap_or(usize::MAX));
                self.write(operand, start, &block[..length])?;
            }
        }
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some("plain product"),
            source: wgpu::ShaderSource::Wgsl(include_str!("../../shaders/plain_product.wgsl").into()),
        };
        #[expect(unsafe_code, reason = "a ceiling is taken without checks, as the kernels are")]
        // SAFETY: whole tiles of matrices whose sizes were checked above are all that it reads and writes.
        let module = unsafe {
            let unchecked = wgpu::ShaderRuntimeChecks::unchecked();
            self.device().create_shader_module_trusted(descriptor, unchecked)
        };
        let constants = [
            ("SIZE", f64::from(size)),
            ("TILE_ROWS", f64::from(tile.rows)),
            ("TILE_COLS", f64::from(tile.cols)),
            ("LANE_ROWS", f64::from(tile.lane_rows)),
        ];
        let pipeline = self
            .device()
            .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some("plain product"),
                layout: None,
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &constants,
                    zero_initialize_workgroup_memory: false,
                },
                cache: None,
            });
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
            .zip(&operands)
            .map(|(binding, operand)| wgpu::BindGroupEntry {
                binding,
                resource: operand.raw().as_entire_binding(),
            })
            .collect();
        let bindings = self.device().create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("plain product"),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        self.check()?;
        Ok(PlainProduct {
            pipeline,
            bindings,
            groups: [size / tile.cols, size / tile.rows],
            _operands: operands,
        })
    }

    /// Records a product.
    pub fn multiply(&mut self, product: &PlainProduct) {
        let (pipeline, bindings) = (product.pipeline.clone(), product.bindings.clone());
        let [x, y] = product.groups;
        self.encode(move |encoder| {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &bindings, &[]);
            pass.dispatch_workgroups(x, y, 1);
        });
    }
}

/// Columns of the left matrix that a workgroup has at a time, as in the shader.
const DEPTH: u32 = 16;

/// What a workgroup of a plain product computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainTile {
    /// Rows of the product.
    pub rows: u32,
    /// Columns.
    pub cols: u32,
    /// Rows of a lane, by four columns.
    pub lane_rows: u32,
}

/// Tiles that are worth a try.
pub const PLAIN_TILES: [PlainTile; 3] = [
    PlainTile {
        rows: 32,
        cols: 32,
        lane_rows: 4,
    },
    PlainTile {
        rows: 64,
        cols: 64,
        lane_rows: 4,
    },
    PlainTile {
        rows: 128,
        cols: 64,
        lane_rows: 8,
    },
];

/// A product that can be recorded again and again.
#[derive(Debug)]
pub struct PlainProduct {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroup,
    groups: [u32; 2],
    _operands: Vec<GpuBuffer>,
}
