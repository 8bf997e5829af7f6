//! The kernels: every variant of every shader, the parts that its source is put together from, and its sizes.
//!
//! One source per op, with a part of it per format of the cache; those of kernels with matrices are put together in
//! [`super::matrices`]. Sizes depend on the class of the device and are part of its kind, as all that the shaders do.

use std::mem::size_of;

use tramontane_model::footprint::EXPANDED_TOKENS;
use tramontane_model::placement::KvFormat;

use super::matrices::{self, Codes, TILED_ROWS, Tiled, Variant};
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

/// Buffers that a shader binds: those that it reads, then those that it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Binds {
    pub(super) reads: u32,
    pub(super) writes: u32,
}

/// What a kernel is compiled from, and how it is called.
pub(super) struct Shader {
    pub(super) label: &'static str,
    /// Parts of the source, joined.
    sources: Vec<&'static str>,
    pub(super) binds: Binds,
    pub(super) immediate_bytes: usize,
}

impl Shader {
    fn new(
        label: &'static str,
        sources: Vec<&'static str>,
        (reads, writes): (u32, u32),
        immediate_bytes: usize,
    ) -> Self {
        Self {
            label,
            sources,
            binds: Binds { reads, writes },
            immediate_bytes,
        }
    }

    /// Of a kernel that decodes weights, with what decodes them.
    fn decoding(mut self, codes: Codes, tuning: &Tuning) -> Self {
        self.sources.extend(codes.sources(tuning.halves));
        self
    }

    /// Of a kernel that reads or writes cached values, with how these are stored.
    fn caching(mut self, format: KvFormat) -> Self {
        self.sources.push(match format {
            KvFormat::F32 => include_str!("../../shaders/shared/cache_f32.wgsl"),
            KvFormat::F16 => include_str!("../../shaders/shared/cache_f16.wgsl"),
        });
        self
    }

    /// The whole source.
    pub(super) fn source(&self) -> String {
        self.sources.join("\n")
    }
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

    /// What it is compiled from.
    pub(super) fn shader(self, tuning: &Tuning) -> Shader {
        match self {
            Self::Adjust => {
                let sources = sources!["adjust.wgsl"];
                Shader::new("adjust", sources, (3, 1), size_of::<adjust::Params>())
            }
            Self::Attention { cached, .. } => {
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
                Shader::new("attention", sources, (4, 2), size_of::<attention::Params>()).caching(cached)
            }
            Self::AttentionMerge => {
                let sources = sources!["attention_merge.wgsl", "shared/attention.wgsl"];
                let size = size_of::<attention::Params>();
                Shader::new("attention_merge", sources, (2, 1), size)
            }
            Self::Combine => {
                let size = size_of::<elementwise::CombineParams>();
                Shader::new("combine", sources!["combine.wgsl"], (3, 1), size)
            }
            Self::Embed => {
                let size = size_of::<elementwise::EmbedParams>();
                Shader::new("embed", sources!["embed.wgsl"], (2, 1), size)
            }
            Self::ExpandGather { cached } => {
                let sources = sources!["expand_gather.wgsl", "shared/loads_u32.wgsl"];
                let size = size_of::<expanded_attention::GatherParams>();
                Shader::new("expand_gather", sources, (2, 2), size).caching(cached)
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
                // Of what is expanded, which is like a cache of f32.
                Shader::new("expanded_attention", sources, (2, 2), size).caching(KvFormat::F32)
            }
            Self::GateUp(variant) => {
                let sources = matrices::sources(include_str!("../../shaders/gate_up.wgsl"), tuning);
                let size = size_of::<matmul::Params>();
                Shader::new("gate_up", sources, (7, 1), size).decoding(variant.codes, tuning)
            }
            Self::GateUpTiled(tiled) => {
                let sources = tiled.sources(include_str!("../../shaders/gate_up_tiled.wgsl"));
                let size = size_of::<matmul::Params>();
                Shader::new("gate_up_tiled", sources, (7, 1), size).decoding(tiled.codes, tuning)
            }
            Self::GroupExperts => {
                let size = size_of::<experts::GroupParams>();
                Shader::new("group_experts", sources!["group_experts.wgsl"], (1, 1), size)
            }
            Self::LatentWrite { cached } => {
                let sources = sources![
                    "latent_write.wgsl",
                    "shared/norm.wgsl",
                    "shared/rotate.wgsl",
                    "shared/loads_u32.wgsl"
                ];
                let size = size_of::<norm::LatentParams>();
                Shader::new("latent_write", sources, (4, 1), size).caching(cached)
            }
            Self::Linear(variant) => {
                let sources = matrices::sources(include_str!("../../shaders/linear.wgsl"), tuning);
                let size = size_of::<matmul::Params>();
                Shader::new("linear", sources, (5, 1), size).decoding(variant.codes, tuning)
            }
            Self::LinearTiled(tiled) => {
                let sources = tiled.sources(include_str!("../../shaders/linear_tiled.wgsl"));
                let size = size_of::<matmul::Params>();
                Shader::new("linear_tiled", sources, (5, 1), size).decoding(tiled.codes, tuning)
            }
            Self::Queries(variant) => {
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
                let size = size_of::<queries::Params>();
                Shader::new("queries", sources, (5, 1), size).decoding(variant.codes, tuning)
            }
            Self::RmsNorm => {
                let sources = sources!["rms_norm.wgsl", "shared/norm.wgsl"];
                Shader::new("rms_norm", sources, (3, 1), size_of::<norm::Params>())
            }
            Self::RotateQkv { cached } => {
                let sources = sources!["rotate_qkv.wgsl", "shared/rotate.wgsl", "shared/loads_u32.wgsl"];
                let size = size_of::<rotate_qkv::Params>();
                Shader::new("rotate_qkv", sources, (5, 2), size).caching(cached)
            }
            Self::Route => {
                let sources = sources!["route.wgsl", "shared/reduce.wgsl"];
                Shader::new("route", sources, (1, 2), size_of::<route::Params>())
            }
            Self::RowFactors => {
                let size = size_of::<row_factors::Params>();
                Shader::new("row_factors", sources!["row_factors.wgsl"], (1, 1), size)
            }
            Self::Sample { .. } => {
                let sources = sources!["sample.wgsl", "shared/reduce.wgsl", "shared/philox.wgsl"];
                Shader::new("sample", sources, (2, 1), size_of::<sample::Params>())
            }
            Self::TurnQueries => {
                let sources = sources!["turn_queries.wgsl", "shared/rotate.wgsl"];
                let size = size_of::<expanded_attention::TurnParams>();
                Shader::new("turn_queries", sources, (3, 1), size)
            }
        }
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
