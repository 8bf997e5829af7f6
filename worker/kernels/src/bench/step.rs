//! Layers with their weights, a step's buffers, and what the executor records of both.

use tramontane_model::footprint::{ExpertScratchBytes, OwnerScratch, StepCapacity, kv_layer_bytes};
use tramontane_model::placement::{KvShape, LayerRange};
use tramontane_model::rope::{RotaryTable, query_scale};
use tramontane_model::spec::ModelSpec;
use tramontane_model::tensors::ModelBytes;

use super::weights::Maker;
use super::{Case, Seen};
use crate::figures::{Part, Role};
use crate::layers::{LayerFeedForward, LayerPass, OwnerBuffers, OwnerLayer, caches, expert_scratch};
use crate::ops::{
    Backend, DeviceBuffer, ExpertBank, ExpertScratch, KvCache, OpError, PromptRows, RowMeta, Rows,
};
use crate::synthetic::{Random, Values};

/// Tokens of a block of the cache, as placements have them unless told otherwise.
const BLOCK_TOKENS: u32 = 16;
/// How far cached values are from zero at most: about as latents after their norm.
const CACHED: f32 = 1.0;

/// Refuses what does not fit beside what is held.
pub(super) fn check_room<D: Backend>(backend: &D, needed: u64) -> Result<(), String> {
    let (memory, held) = (backend.info().memory_bytes, backend.held_bytes());
    match held.checked_add(needed) {
        Some(total) if total <= memory => Ok(()),
        Some(_) | None => Err(format!(
            "{needed} bytes are needed beside {held} that are held, the device has {memory}"
        )),
    }
}

/// Layers of one kind.
#[derive(Debug)]
pub(super) struct Layers<B> {
    pub(super) part: Part,
    pub(super) owners: Vec<OwnerLayer<B>>,
    /// As many as layers, or none.
    banks: Vec<ExpertBank<B>>,
    first: u32,
}

impl<B: DeviceBuffer> Layers<B> {
    /// Makes `count` layers of a kind that the model has.
    pub(super) fn new<D: Backend<Buffer = B>>(
        maker: &mut Maker<'_, D>,
        part: Part,
        count: u32,
    ) -> Result<Self, String> {
        let first = match part {
            Part::MoeLayer => maker.spec.moe_layers().start,
            Part::DenseLayer | Part::Ends => 0,
        };
        let bytes = ModelBytes::usual(maker.spec);
        let layer = bytes.layers.get(first as usize).copied().unwrap_or_default();
        let experts = layer.expert * u64::from(maker.spec.n_experts());
        check_room(&*maker.backend, u64::from(count) * (layer.owner + experts))?;
        let mut layers = Self {
            part,
            owners: Vec::new(),
            banks: Vec::new(),
            first,
        };
        for _ in 0..count {
            let owner = OwnerLayer::of(maker.spec, first, maker).map_err(|error| error.to_string())?;
            layers.owners.push(owner);
            if part == Part::MoeLayer {
                let bank = maker.bank(first).map_err(|error| error.to_string())?;
                layers.banks.push(bank);
            }
        }
        Ok(layers)
    }

    pub(super) fn count(&self) -> usize {
        self.owners.len()
    }

    /// Records a whole layer, as a stage's owner does that holds all experts.
    pub(super) fn record<D: Backend<Buffer = B>>(
        &self,
        backend: &mut D,
        spec: &ModelSpec,
        step: &Step<B>,
        index: usize,
    ) -> Result<(), OpError> {
        let (owner, cache) = (&self.owners[index], &step.caches[index]);
        let mut pass = LayerPass {
            expanded: &step.expanded,
            backend,
            spec,
            buffers: &step.buffers,
            rows: step.rows,
            table_rows: step.table_rows,
            table_width: step.table_width,
        };
        pass.attention(owner, cache)?;
        pass.ffn_norm(owner)?;
        match (&owner.feed_forward, spec.moe_at(self.first)) {
            (LayerFeedForward::Dense(dense), _) => pass.dense(dense),
            (LayerFeedForward::Moe { gate, shared }, Some(moe)) => {
                pass.route(gate, moe)?;
                if let Some(shared) = shared {
                    pass.shared(shared)?;
                }
                if let (Some(bank), Some(scratch)) = (self.banks.get(index), &step.scratch) {
                    pass.experts(bank, scratch, moe)?;
                }
                pass.combine(moe)
            }
            (LayerFeedForward::Moe { .. }, None) => {
                Err(OpError::shape("layer", "it has experts and the model none"))
            }
        }
    }
}

/// The buffers of one step through some layers, filled.
#[derive(Debug)]
pub(super) struct Step<B> {
    pub(super) rows: Rows,
    expanded: Vec<PromptRows>,
    pub(super) buffers: OwnerBuffers<B>,
    pub(super) seen: Seen,
    pub(super) hidden: Vec<f32>,
    caches: Vec<KvCache<B>>,
    scratch: Option<ExpertScratch<B>>,
    table_rows: u32,
    table_width: u32,
}

impl<B: DeviceBuffer> Step<B> {
    /// Makes what a step of this case needs, if it fits.
    pub(super) fn new<D: Backend<Buffer = B>>(
        maker: &mut Maker<'_, D>,
        layers: &Layers<B>,
        case: Case,
    ) -> Result<Self, String> {
        let spec = maker.spec;
        if case.context > spec.max_context {
            return Err(format!("the model's context is {} tokens", spec.max_context));
        }
        let sequences = match case.role {
            Role::Generated => case.rows,
            Role::Given | Role::Expanded => 1,
        };
        let capacity = StepCapacity {
            rows: case.rows,
            sequences,
            expanded_group: match case.role {
                Role::Generated | Role::Given => 0,
                Role::Expanded => case.rows,
            },
        };
        let width = case.context.div_ceil(BLOCK_TOKENS);
        let kv = KvShape {
            block_tokens: BLOCK_TOKENS,
            blocks: width.saturating_mul(sequences),
            format: case.cached,
        };
        let count = layers.count() as u32;
        let needed = u64::from(count)
            .saturating_mul(kv_layer_bytes(spec, kv))
            .saturating_add(OwnerScratch::new(spec, capacity, kv).total())
            .saturating_add(ExpertScratchBytes::new(spec, capacity).total());
        check_room(&*maker.backend, needed)?;
        let step = Self::allocate(maker, layers, case, capacity, kv);
        step.map_err(|error| error.to_string())
    }

    fn allocate<D: Backend<Buffer = B>>(
        maker: &mut Maker<'_, D>,
        layers: &Layers<B>,
        case: Case,
        capacity: StepCapacity,
        kv: KvShape,
    ) -> Result<Self, OpError> {
        let spec = maker.spec;
        let count = layers.count() as u32;
        let range = LayerRange::new(layers.first, layers.first + count);
        let range = range.ok_or_else(|| OpError::shape("layers", "there are none"))?;
        let caches = caches(maker.backend, spec, range, kv)?;
        for cache in &caches {
            // Halves of words that are numbers of this size in f32 as in f16.
            maker.fill(cache.buffer(), 0, cache.buffer().bytes(), Values::Spread(CACHED))?;
        }
        let buffers = OwnerBuffers::new(maker.backend, spec, capacity, kv)?;
        let scratch = match layers.part {
            Part::MoeLayer => Some(expert_scratch(maker.backend, spec, capacity)?),
            Part::DenseLayer | Part::Ends => None,
        };
        let (sequences, width) = (capacity.sequences, kv.blocks / capacity.sequences.max(1));
        // Neighbouring blocks are of different sequences, as where sequences grow side by side.
        let block = |sequence: u32, index: u32| index * sequences + sequence;
        let tables: Vec<u32> = (0..sequences)
            .flat_map(|sequence| (0..width).map(move |index| block(sequence, index)))
            .collect();
        let metas: Vec<RowMeta> = (0..case.rows)
            .map(|row| {
                let (table, position) = match case.role {
                    Role::Generated => (row, case.context - 1),
                    Role::Given | Role::Expanded => (0, case.context - case.rows + row),
                };
                let slot = block(table, position / BLOCK_TOKENS) * BLOCK_TOKENS + position % BLOCK_TOKENS;
                RowMeta {
                    position,
                    slot,
                    table,
                    query_scale: query_scale(spec.query_scaling.as_ref(), position),
                }
            })
            .collect();
        let rotary = RotaryTable::new(&spec.rope);
        let turns: Vec<f32> = (metas.iter())
            .flat_map(|meta| rotary.cos_sin(meta.position..meta.position + 1))
            .collect();
        let backend = &mut *maker.backend;
        backend.write(&buffers.tables, 0, bytemuck::cast_slice(&tables))?;
        backend.write(&buffers.meta, 0, bytemuck::cast_slice(&metas))?;
        backend.write(&buffers.rotary, 0, bytemuck::cast_slice(&turns))?;
        let row_tokens = metas.iter().map(|meta| u64::from(meta.position) + 1).sum();
        Ok(Self {
            rows: rows_of(case.role, case.rows),
            expanded: match case.role {
                Role::Generated | Role::Given => Vec::new(),
                Role::Expanded => vec![PromptRows {
                    first_row: 0,
                    rows: case.rows,
                    first_position: case.context - case.rows,
                    table: 0,
                }],
            },
            buffers,
            seen: Seen {
                cached_tokens: u64::from(sequences) * u64::from(case.context),
                row_tokens,
                experts: 0,
            },
            hidden: floats(u64::from(case.rows) * u64::from(spec.dim), 1.0),
            caches,
            scratch,
            table_rows: sequences,
            table_width: width,
        })
    }
}

pub(super) fn rows_of(role: Role, rows: u32) -> Rows {
    match role {
        Role::Generated => Rows::new(rows, 0),
        Role::Given | Role::Expanded => Rows::new(0, rows),
    }
}

/// Values that look random, evenly spread up to `most`.
fn floats(count: u64, most: f32) -> Vec<f32> {
    let mut random = Random::of(0, "hidden");
    (0..count).map(|_| (random.unit() * 2.0 - 1.0) * most).collect()
}
