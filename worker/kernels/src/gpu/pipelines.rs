//! The kernels and their pipelines, all compiled when a device is opened.
//!
//! One source per op, with a part of it per format of the cache; those of kernels with matrices are put together in
//! [`super::matrices`]. Sizes depend on the class of the device and are part of its kind, as all that the shaders do.

use std::collections::HashMap;
use std::mem::size_of;

use tramontane_model::footprint::EXPANDED_TOKENS;
use tramontane_model::placement::KvFormat;

use super::matrices::{self, Codes, Sums, TILED_ROWS, Tiled, Variant};
use super::ops::{
    adjust, attention, elementwise, expanded_attention, experts, matmul, norm, queries, rotate_qkv, route,
    row_factors, sample,
};
use super::tuning::{ATTENTION_BLOCKS, Tuning};

/// Most buffers that a kernel binds.
pub(super) const MAX_BINDINGS: usize = 8;

/// A shader in one of its variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    Adjust,
    Attention {
        /// Heads of a workgroup, in fours.
        blocks: u32,
        cached: KvFormat,
    },
    AttentionMerge,
    Combine,
    Embed,
    ExpandGather {
        cached: KvFormat,
    },
    ExpandedAttention {
        /// Rows of a workgroup, in fours.
        blocks: u32,
    },
    GateUp(Variant),
    GateUpTiled(Tiled),
    GroupExperts,
    LatentWrite {
        cached: KvFormat,
    },
    Linear(Variant),
    LinearTiled(Tiled),
    /// Never grouped.
    Queries(Variant),
    RmsNorm,
    RotateQkv {
        cached: KvFormat,
    },
    Route,
    /// For cooperative matrices.
    RowFactors,
    Sample {
        lanes: u32,
    },
    TurnQueries,
}

/// What all variants of a shader have in common.
pub(super) struct Shader {
    pub(super) label: &'static str,
    /// Parts of the source, joined.
    pub(super) sources: Vec<&'static str>,
    /// Buffers read, then buffers written, in the order of their bindings.
    pub(super) reads: u32,
    pub(super) writes: u32,
    pub(super) immediate_bytes: usize,
}

macro_rules! sources {
    ($($path:literal),+) => { vec![$(include_str!(concat!("../../shaders/", $path))),+] };
}

impl Kernel {
    pub(super) fn all(tuning: &Tuning) -> Vec<Self> {
        let mut kernels = vec![
            Self::Adjust,
            Self::AttentionMerge,
            Self::Combine,
            Self::Embed,
            Self::GroupExperts,
            Self::RmsNorm,
            Self::Route,
            Self::TurnQueries,
        ];
        kernels.extend(ATTENTION_BLOCKS.map(|blocks| Self::ExpandedAttention { blocks }));
        kernels.extend(tuning.lanes_sample.iter().map(|&lanes| Self::Sample { lanes }));
        for cached in KvFormat::ALL {
            kernels.extend([
                Self::ExpandGather { cached },
                Self::LatentWrite { cached },
                Self::RotateQkv { cached },
            ]);
            kernels.extend(ATTENTION_BLOCKS.map(|blocks| Self::Attention { blocks, cached }));
        }
        for codes in Codes::ALL {
            let variant = |grouped, rows| Variant { codes, grouped, rows };
            let plain = tuning.tiles.iter().map(|&rows| variant(false, rows));
            kernels.extend(plain.clone().map(Self::Queries));
            let grouped = tuning.pair_tiles.iter().map(|&rows| variant(true, rows));
            for variant in plain.chain(grouped) {
                kernels.extend([Self::GateUp(variant), Self::Linear(variant)]);
            }
            if let Some(sums) = tuning.given.sums(codes) {
                let tiled = TILED_ROWS.map(|rows| Tiled { codes, sums, rows });
                kernels.extend(tiled.map(Self::GateUpTiled));
                kernels.extend(tiled.map(Self::LinearTiled));
            }
        }
        if tuning.given.rounds_rows() {
            kernels.push(Self::RowFactors);
        }
        kernels
    }

    /// Which bind group layout it uses: one per shader.
    pub(super) fn layout(self) -> usize {
        match self {
            Self::Attention { .. } => 0,
            Self::Combine => 1,
            Self::Embed => 2,
            Self::GateUp(_) => 3,
            Self::GroupExperts => 4,
            Self::LatentWrite { .. } => 5,
            Self::Linear(_) => 6,
            Self::Queries(_) => 7,
            Self::RmsNorm => 8,
            Self::Route => 9,
            Self::Sample { .. } => 10,
            Self::Adjust => 11,
            Self::RotateQkv { .. } => 12,
            Self::AttentionMerge => 13,
            Self::GateUpTiled(_) => 14,
            Self::LinearTiled(_) => 15,
            Self::RowFactors => 16,
            Self::ExpandGather { .. } => 17,
            Self::ExpandedAttention { .. } => 18,
            Self::TurnQueries => 19,
        }
    }

    fn shader(self, tuning: &Tuning) -> Shader {
        let new = |label, sources, reads, writes, immediate_bytes| Shader {
            label,
            sources,
            reads,
            writes,
            immediate_bytes,
        };
        match self {
            Self::Adjust => new(
                "adjust",
                sources!["adjust.wgsl"],
                3,
                1,
                size_of::<adjust::Params>(),
            ),
            Self::Attention { .. } => {
                let sources = match tuning.shares_loads {
                    true => sources![
                        "attention_subgroup.wgsl",
                        "shared/attention.wgsl",
                        "shared/attention_subgroup.wgsl",
                        "shared/loads_u64.wgsl"
                    ],
                    false => sources![
                        "attention.wgsl",
                        "shared/attention.wgsl",
                        "shared/attention_lanes.wgsl",
                        "shared/loads_u32.wgsl"
                    ],
                };
                new("attention", sources, 4, 2, size_of::<attention::Params>())
            }
            Self::AttentionMerge => {
                let sources = sources!["attention_merge.wgsl", "shared/attention.wgsl"];
                new("attention_merge", sources, 2, 1, size_of::<attention::Params>())
            }
            Self::Combine => {
                let size = size_of::<elementwise::CombineParams>();
                new("combine", sources!["combine.wgsl"], 3, 1, size)
            }
            Self::Embed => {
                let size = size_of::<elementwise::EmbedParams>();
                new("embed", sources!["embed.wgsl"], 2, 1, size)
            }
            Self::ExpandGather { .. } => {
                let sources = sources!["expand_gather.wgsl", "shared/loads_u32.wgsl"];
                let size = size_of::<expanded_attention::GatherParams>();
                new("expand_gather", sources, 2, 2, size)
            }
            Self::ExpandedAttention { .. } => {
                let sources = match tuning.shares_loads {
                    true => sources![
                        "expanded_attention_subgroup.wgsl",
                        "shared/expanded.wgsl",
                        "shared/attention_subgroup.wgsl",
                        "shared/loads_u64.wgsl"
                    ],
                    false => sources![
                        "expanded_attention.wgsl",
                        "shared/expanded.wgsl",
                        "shared/attention_lanes.wgsl",
                        "shared/loads_u32.wgsl"
                    ],
                };
                let size = size_of::<expanded_attention::Params>();
                new("expanded_attention", sources, 2, 2, size)
            }
            Self::GateUp(_) => {
                let sources = matrices::sources(include_str!("../../shaders/gate_up.wgsl"), tuning);
                new("gate_up", sources, 7, 1, size_of::<matmul::Params>())
            }
            Self::GateUpTiled(tiled) => {
                let sources = tiled.sources(include_str!("../../shaders/gate_up_tiled.wgsl"));
                new("gate_up_tiled", sources, 7, 1, size_of::<matmul::Params>())
            }
            Self::GroupExperts => {
                let size = size_of::<experts::GroupParams>();
                new("group_experts", sources!["group_experts.wgsl"], 1, 1, size)
            }
            Self::LatentWrite { .. } => {
                let sources = sources![
                    "latent_write.wgsl",
                    "shared/norm.wgsl",
                    "shared/rotate.wgsl",
                    "shared/loads_u32.wgsl"
                ];
                new("latent_write", sources, 4, 1, size_of::<norm::LatentParams>())
            }
            Self::Linear(_) => {
                let sources = matrices::sources(include_str!("../../shaders/linear.wgsl"), tuning);
                new("linear", sources, 5, 1, size_of::<matmul::Params>())
            }
            Self::LinearTiled(tiled) => {
                let sources = tiled.sources(include_str!("../../shaders/linear_tiled.wgsl"));
                new("linear_tiled", sources, 5, 1, size_of::<matmul::Params>())
            }
            Self::Queries(_) => {
                let sources = match tuning.shares_loads {
                    true => sources![
                        "queries.wgsl",
                        "shared/queries_subgroup.wgsl",
                        "shared/rotate.wgsl",
                        "shared/loads_u64.wgsl",
                        "shared/weights.wgsl"
                    ],
                    false => sources![
                        "queries.wgsl",
                        "shared/queries_direct.wgsl",
                        "shared/rotate.wgsl",
                        "shared/loads_u32.wgsl",
                        "shared/weights.wgsl"
                    ],
                };
                new("queries", sources, 5, 1, size_of::<queries::Params>())
            }
            Self::RmsNorm => {
                let sources = sources!["rms_norm.wgsl", "shared/norm.wgsl"];
                new("rms_norm", sources, 3, 1, size_of::<norm::Params>())
            }
            Self::RotateQkv { .. } => {
                let sources = sources!["rotate_qkv.wgsl", "shared/rotate.wgsl", "shared/loads_u32.wgsl"];
                new("rotate_qkv", sources, 5, 2, size_of::<rotate_qkv::Params>())
            }
            Self::Route => {
                let sources = sources!["route.wgsl", "shared/reduce.wgsl"];
                new("route", sources, 1, 2, size_of::<route::Params>())
            }
            Self::RowFactors => {
                let size = size_of::<row_factors::Params>();
                new("row_factors", sources!["row_factors.wgsl"], 1, 1, size)
            }
            Self::Sample { .. } => {
                let sources = sources!["sample.wgsl", "shared/reduce.wgsl", "shared/philox.wgsl"];
                new("sample", sources, 2, 1, size_of::<sample::Params>())
            }
            Self::TurnQueries => {
                let size = size_of::<expanded_attention::TurnParams>();
                new(
                    "turn_queries",
                    sources!["turn_queries.wgsl", "shared/rotate.wgsl"],
                    3,
                    1,
                    size,
                )
            }
        }
    }

    /// What the weights that it reads are, where it reads any.
    fn codes(self) -> Option<Codes> {
        match self {
            Self::GateUp(variant) | Self::Linear(variant) | Self::Queries(variant) => Some(variant.codes),
            Self::GateUpTiled(tiled) | Self::LinearTiled(tiled) => Some(tiled.codes),
            Self::Adjust
            | Self::Attention { .. }
            | Self::AttentionMerge
            | Self::Combine
            | Self::Embed
            | Self::ExpandGather { .. }
            | Self::ExpandedAttention { .. }
            | Self::GroupExperts
            | Self::LatentWrite { .. }
            | Self::RmsNorm
            | Self::RotateQkv { .. }
            | Self::Route
            | Self::RowFactors
            | Self::Sample { .. }
            | Self::TurnQueries => None,
        }
    }

    /// How the cache that it reads or writes stores values, where it does.
    fn cached(self) -> Option<KvFormat> {
        match self {
            Self::Attention { cached, .. }
            | Self::ExpandGather { cached }
            | Self::LatentWrite { cached }
            | Self::RotateQkv { cached } => Some(cached),
            // Of what is expanded, which is like a cache of f32.
            Self::ExpandedAttention { .. } => Some(KvFormat::F32),
            Self::Adjust
            | Self::AttentionMerge
            | Self::Combine
            | Self::Embed
            | Self::GateUp(_)
            | Self::GateUpTiled(_)
            | Self::GroupExperts
            | Self::Linear(_)
            | Self::LinearTiled(_)
            | Self::Queries(_)
            | Self::RmsNorm
            | Self::Route
            | Self::RowFactors
            | Self::Sample { .. }
            | Self::TurnQueries => None,
        }
    }

    /// How sums of tiles are taken, where it has such.
    fn sums(self) -> Option<Sums> {
        match self {
            Self::GateUpTiled(tiled) | Self::LinearTiled(tiled) => Some(tiled.sums),
            Self::GateUp(_)
            | Self::Linear(_)
            | Self::Queries(_)
            | Self::Adjust
            | Self::Attention { .. }
            | Self::AttentionMerge
            | Self::Combine
            | Self::Embed
            | Self::ExpandGather { .. }
            | Self::ExpandedAttention { .. }
            | Self::GroupExperts
            | Self::LatentWrite { .. }
            | Self::RmsNorm
            | Self::RotateQkv { .. }
            | Self::Route
            | Self::RowFactors
            | Self::Sample { .. }
            | Self::TurnQueries => None,
        }
    }

    /// The whole source: of a kernel that decodes codes or cached values, with what decodes these.
    pub(super) fn source(self, tuning: &Tuning) -> String {
        let mut parts = self.shader(tuning).sources;
        if let Some(codes) = self.codes() {
            parts.extend(codes.sources(tuning.halves));
        }
        parts.extend(self.cached().map(|format| match format {
            KvFormat::F32 => include_str!("../../shaders/shared/cache_f32.wgsl"),
            KvFormat::F16 => include_str!("../../shaders/shared/cache_f16.wgsl"),
        }));
        parts.join("\n")
    }

    /// Values of the shader's overrides.
    pub(super) fn constants(self, tuning: &Tuning) -> Vec<(&'static str, f64)> {
        let lanes = |lanes: u32| vec![("LANES", f64::from(lanes))];
        let matrix = |variant: Variant, outputs: u32| {
            vec![
                ("ROWS", f64::from(variant.rows)),
                ("GROUPED", f64::from(u8::from(variant.grouped))),
                ("LANES_K", f64::from(tuning.lanes_k)),
                ("LANES_N", f64::from(tuning.lanes_n)),
                ("OUTPUTS", f64::from(outputs)),
            ]
        };
        match self {
            Self::Attention { blocks, .. } => {
                attention_constants(tuning, blocks, tuning.attention_split(blocks))
            }
            Self::ExpandedAttention { blocks } => attention_constants(tuning, blocks, EXPANDED_TOKENS),
            Self::AttentionMerge => lanes(tuning.lanes_attention),
            Self::Combine
            | Self::Embed
            | Self::ExpandGather { .. }
            | Self::RotateQkv { .. }
            | Self::TurnQueries => lanes(tuning.lanes_each),
            Self::GateUp(variant) => matrix(variant, tuning.gate_up_lane_outputs()),
            Self::Linear(variant) => matrix(variant, tuning.outputs),
            Self::GateUpTiled(tiled) | Self::LinearTiled(tiled) => vec![("ROWS", f64::from(tiled.rows))],
            Self::Adjust | Self::GroupExperts => lanes(tuning.lanes_wide),
            Self::Sample { lanes: of_row } => lanes(of_row),
            Self::LatentWrite { .. } | Self::RmsNorm | Self::RowFactors => lanes(tuning.lanes_row),
            Self::Queries(variant) => {
                let mut constants = lanes(tuning.lanes_query);
                constants.push(("ROWS", f64::from(variant.rows)));
                constants
            }
            Self::Route => lanes(tuning.lanes_route),
        }
    }
}

/// Those of attention with so many tokens for a workgroup.
fn attention_constants(tuning: &Tuning, blocks: u32, tokens: u32) -> Vec<(&'static str, f64)> {
    let lanes = tuning.lanes_attention;
    let mut constants = vec![("LANES", lanes), ("BLOCKS", blocks)];
    match tuning.shares_loads {
        true => constants.push(("SPLIT", tokens)),
        false => constants.extend([
            ("BLOCK_LANES", lanes / blocks),
            ("TILE", tuning.attention_tile(blocks)),
            ("CHUNK", tuning.attention_chunk(blocks)),
        ]),
    }
    let each = constants.into_iter();
    each.map(|(name, value)| (name, f64::from(value))).collect()
}

/// A compiled kernel.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) bindings: wgpu::BindGroupLayout,
    pub(super) immediate_bytes: usize,
}

/// All kernels of a device.
#[derive(Debug)]
pub(super) struct Pipelines {
    compiled: HashMap<Kernel, Pipeline>,
}

/// A module and its layouts, shared by the variants of a shader that read the same formats.
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
            let module = modules
                .entry((kernel.layout(), kernel.codes(), kernel.cached(), kernel.sums()))
                .or_insert_with(|| module(device, &shader, kernel.source(tuning)));
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

fn module(device: &wgpu::Device, shader: &Shader, source: String) -> Module {
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
    let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..shader.reads + shader.writes)
        .map(|binding| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage {
                    read_only: binding < shader.reads,
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
