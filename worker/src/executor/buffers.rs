//! The buffers of a device's steps, allocated once per assignment from the formulas of [`tramontane_model::footprint`].

use tramontane_model::footprint::{
    ExpertScratchBytes, HeadScratch, HolderScratch, OwnerScratch, SAMPLE_RESULT_WORDS, StepCapacity,
};
use tramontane_model::spec::{AttentionSpec, ModelSpec};

use crate::ops::{Backend, DeviceBuffer, ExpertScratch, KvCache, KvCacheShape, OpError, SampleResult};
use crate::weights::StageSlice;

const _: () = assert!(SampleResult::bytes(1) == SAMPLE_RESULT_WORDS * 4);

/// Buffers of a stage's owner; what each holds is said at [`OwnerScratch`].
#[derive(Debug)]
pub(super) struct OwnerBuffers<B> {
    pub(super) tokens: B,
    pub(super) meta: B,
    pub(super) rotary: B,
    pub(super) tables: B,
    pub(super) hidden: B,
    pub(super) normed: B,
    pub(super) compressed: B,
    pub(super) compressed_normed: B,
    pub(super) expanded: B,
    pub(super) latent: B,
    pub(super) keys: B,
    pub(super) values: B,
    pub(super) queries: B,
    pub(super) context: B,
    pub(super) attended: B,
    pub(super) gated: B,
    pub(super) shared: B,
    pub(super) router_logits: B,
    pub(super) expert_ids: B,
    pub(super) expert_weights: B,
    pub(super) expert_results: B,
}

/// Buffers of the owner of the last stage; what each holds is said at [`HeadScratch`].
#[derive(Debug)]
pub(super) struct HeadBuffers<B> {
    pub(super) picks: B,
    pub(super) normed: B,
    pub(super) logits: B,
    pub(super) params: B,
    pub(super) adjusted: B,
    pub(super) masks: B,
    pub(super) adjustments: B,
    pub(super) sampled: B,
}

/// Buffers in which experts are computed for other owners; what each holds is said at [`HolderScratch`].
#[derive(Debug)]
pub(super) struct HolderBuffers<B> {
    pub(super) input: B,
    pub(super) expert_ids: B,
    pub(super) results: B,
}

/// Allocates a buffer that ops bind whole.
fn alloc<D: Backend>(backend: &mut D, label: &str, bytes: u64) -> Result<D::Buffer, OpError> {
    let limit = backend.max_binding_bytes();
    if bytes > limit {
        return Err(OpError::BindingLimit {
            label: label.to_owned(),
            bytes,
            limit,
        });
    }
    backend.alloc(label, bytes)
}

impl<B: DeviceBuffer> OwnerBuffers<B> {
    pub(super) fn new<D: Backend<Buffer = B>>(
        backend: &mut D,
        spec: &ModelSpec,
        capacity: StepCapacity,
        stage: &StageSlice,
    ) -> Result<Self, OpError> {
        let bytes = OwnerScratch::new(spec, capacity, stage.kv);
        let mut new = |label, bytes| alloc(backend, label, bytes);
        Ok(Self {
            tokens: new("tokens", bytes.tokens)?,
            meta: new("row meta", bytes.meta)?,
            rotary: new("rotary", bytes.rotary)?,
            tables: new("block tables", bytes.tables)?,
            hidden: new("hidden", bytes.hidden)?,
            normed: new("normed", bytes.normed)?,
            compressed: new("compressed query", bytes.compressed)?,
            compressed_normed: new("normed compressed query", bytes.compressed_normed)?,
            expanded: new("expanded query", bytes.expanded)?,
            latent: new("latent", bytes.latent)?,
            keys: new("keys", bytes.keys)?,
            values: new("values", bytes.values)?,
            queries: new("query", bytes.queries)?,
            context: new("attention context", bytes.context)?,
            attended: new("attention values", bytes.attended)?,
            gated: new("gated", bytes.gated)?,
            shared: new("shared expert result", bytes.shared)?,
            router_logits: new("router logits", bytes.router_logits)?,
            expert_ids: new("expert ids", bytes.expert_ids)?,
            expert_weights: new("expert weights", bytes.expert_weights)?,
            expert_results: new("expert results", bytes.expert_results)?,
        })
    }
}

impl<B: DeviceBuffer> HeadBuffers<B> {
    pub(super) fn new<D: Backend<Buffer = B>>(backend: &mut D, spec: &ModelSpec) -> Result<Self, OpError> {
        let bytes = HeadScratch::new(spec);
        let mut new = |label, bytes| alloc(backend, label, bytes);
        Ok(Self {
            picks: new("sampled rows", bytes.picks)?,
            normed: new("normed sampled rows", bytes.normed)?,
            logits: new("logits", bytes.logits)?,
            params: new("sampling parameters", bytes.params)?,
            adjusted: new("adjusted rows", bytes.adjusted)?,
            masks: new("masks", bytes.masks)?,
            adjustments: new("adjustments", bytes.adjustments)?,
            sampled: new("sampling results", bytes.sampled)?,
        })
    }
}

impl<B: DeviceBuffer> HolderBuffers<B> {
    pub(super) fn new<D: Backend<Buffer = B>>(
        backend: &mut D,
        spec: &ModelSpec,
        capacity: StepCapacity,
    ) -> Result<Self, OpError> {
        let bytes = HolderScratch::new(spec, capacity);
        let mut new = |label, bytes| alloc(backend, label, bytes);
        Ok(Self {
            input: new("requested rows", bytes.input)?,
            expert_ids: new("requested experts", bytes.expert_ids)?,
            results: new("requested results", bytes.results)?,
        })
    }
}

/// Scratch of the experts' op, for own rows and for those of others: one call at a time.
pub(super) fn expert_scratch<D: Backend>(
    backend: &mut D,
    spec: &ModelSpec,
    capacity: StepCapacity,
) -> Result<ExpertScratch<D::Buffer>, OpError> {
    let bytes = ExpertScratchBytes::new(spec, capacity);
    Ok(ExpertScratch {
        plan: alloc(backend, "expert plan", bytes.plan)?,
        hidden: alloc(backend, "expert hidden", bytes.hidden)?,
    })
}

/// The caches of a stage's layers, in their order.
pub(super) fn caches<D: Backend>(
    backend: &mut D,
    spec: &ModelSpec,
    stage: &StageSlice,
) -> Result<Vec<KvCache<D::Buffer>>, OpError> {
    let (blocks, block_tokens) = (stage.kv.blocks, stage.kv.block_tokens);
    let shape = match &spec.attention {
        AttentionSpec::Mla(mla) => {
            KvCacheShape::latent(blocks, block_tokens, mla.kv_lora_rank, mla.qk_rope_head_dim)
        }
        AttentionSpec::Gqa(gqa) => KvCacheShape::grouped(blocks, block_tokens, gqa.n_kv_heads, gqa.head_dim),
    };
    let slots = u64::from(shape.blocks) * u64::from(shape.block_tokens);
    if slots >= u64::from(u32::MAX) {
        return Err(OpError::shape(
            "kv cache",
            format!("{slots} slots, there must be fewer than {}", u32::MAX),
        ));
    }
    let label = |layer: u32| format!("cache of layer {layer}");
    stage
        .layers
        .iter()
        .map(|layer| {
            let buffer = alloc(backend, &label(layer), shape.bytes())?;
            KvCache::new(shape, buffer)
        })
        .collect()
}
