//! The buffers of a device's steps, allocated once per assignment from the formulas of [`tramontane_model::footprint`].

use tramontane_model::footprint::{
    ExpertScratchBytes, HeadScratch, HolderScratch, OwnerScratch, SAMPLE_RESULT_WORDS, StepCapacity,
};
use tramontane_model::spec::{AttentionSpec, ModelSpec};

use crate::ops::{
    Backend, DeviceBuffer, ExpandedScratch, ExpertScratch, KvCache, KvCacheShape, OpError, SampleResult,
};
use tramontane_model::placement::{KvShape, LayerRange};

const _: () = assert!(SampleResult::bytes(1) == SAMPLE_RESULT_WORDS * 4);

/// Buffers of a stage's owner; what each holds is said at [`OwnerScratch`].
#[derive(Debug)]
#[expect(missing_docs, reason = "each is said there")]
pub struct OwnerBuffers<B> {
    pub tokens: B,
    pub meta: B,
    pub rotary: B,
    pub tables: B,
    pub hidden: B,
    pub normed: B,
    pub compressed: B,
    pub compressed_normed: B,
    pub expanded: B,
    pub latent: B,
    pub keys: B,
    pub values: B,
    pub queries: B,
    pub partials: B,
    pub context: B,
    pub attended: B,
    pub expansion: ExpandedScratch<B>,
    pub gated: B,
    pub shared: B,
    pub router_logits: B,
    pub expert_ids: B,
    pub expert_weights: B,
    pub expert_results: B,
}

/// Buffers of the owner of the last stage; what each holds is said at [`HeadScratch`].
#[derive(Debug)]
#[expect(missing_docs, reason = "each is said there")]
pub struct HeadBuffers<B> {
    pub picks: B,
    pub normed: B,
    pub logits: B,
    pub params: B,
    pub adjusted: B,
    pub masks: B,
    pub adjustments: B,
    pub sampled: B,
}

/// Buffers in which experts are computed for other owners; what each holds is said at [`HolderScratch`].
#[derive(Debug)]
#[expect(missing_docs, reason = "each is said there")]
pub struct HolderBuffers<B> {
    pub input: B,
    pub expert_ids: B,
    pub results: B,
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
    /// Allocates them.
    pub fn new<D: Backend<Buffer = B>>(
        backend: &mut D,
        spec: &ModelSpec,
        capacity: StepCapacity,
        kv: KvShape,
    ) -> Result<Self, OpError> {
        let bytes = OwnerScratch::new(spec, capacity, kv);
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
            partials: new("attention partials", bytes.partials)?,
            context: new("attention context", bytes.context)?,
            attended: new("attention values", bytes.attended)?,
            expansion: ExpandedScratch {
                latents: new("latents to expand", bytes.expanded_latents)?,
                keys_values: new("expanded keys and values", bytes.expanded_tokens)?,
                state: new("state of expanded rows", bytes.expanded_state)?,
            },
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
    /// Allocates them.
    pub fn new<D: Backend<Buffer = B>>(backend: &mut D, spec: &ModelSpec) -> Result<Self, OpError> {
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
    /// Allocates them.
    pub fn new<D: Backend<Buffer = B>>(
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
pub fn expert_scratch<D: Backend>(
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
pub fn caches<D: Backend>(
    backend: &mut D,
    spec: &ModelSpec,
    layers: LayerRange,
    kv: KvShape,
) -> Result<Vec<KvCache<D::Buffer>>, OpError> {
    let KvShape {
        block_tokens,
        blocks,
        format,
    } = kv;
    let shape = match &spec.attention {
        AttentionSpec::Mla(mla) => {
            let (latent, rope) = (mla.kv_lora_rank, mla.qk_rope_head_dim);
            KvCacheShape::latent(blocks, block_tokens, latent, rope, format)
        }
        AttentionSpec::Gqa(gqa) => {
            KvCacheShape::grouped(blocks, block_tokens, gqa.n_kv_heads, gqa.head_dim, format)
        }
    };
    let slots = u64::from(shape.blocks) * u64::from(shape.block_tokens);
    if slots >= u64::from(u32::MAX) {
        return Err(OpError::shape(
            "kv cache",
            format!("{slots} slots, there must be fewer than {}", u32::MAX),
        ));
    }
    let label = |layer: u32| format!("cache of layer {layer}");
    layers
        .iter()
        .map(|layer| {
            let buffer = alloc(backend, &label(layer), shape.bytes())?;
            KvCache::new(shape, buffer)
        })
        .collect()
}
