// expand_gather: latents[i] and keys[first_rope + i] = the latent and the key's rotated part of token first_token + i of a
// sequence, from the cache. Workgroup: x = i. How values are cached: shared/cache_*.wgsl.
// Twin: src/reference/expanded_attention.rs
override LANES: u32 = 64;
@group(0) @binding(0) var<storage, read> tables: array<u32>;
@group(0) @binding(1) var<storage, read> cache: array<Cached>;
@group(0) @binding(2) var<storage, read_write> latents: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> keys: array<vec4<f32>>;

struct Params {
    // Widths / 4.
    latent: u32,
    rope: u32,
    // Where the rotated parts begin / 4.
    first_rope: u32,
    first_token: u32,
    // Where the sequence's block table begins.
    table: u32,
    // log2 of the tokens of a block; blocks of the cache.
    block_bits: u32,
    blocks: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let token = p.first_token + workgroup.x;
    let block = min(tables[p.table + (token >> p.block_bits)], p.blocks - 1u);
    let slot = (block << p.block_bits) + (token & ((1u << p.block_bits) - 1u));
    let place = slot * (p.latent + p.rope);
    for (var quad = lane; quad < p.latent; quad += LANES) {
        latents[workgroup.x * p.latent + quad] = cached(cache[place + quad]);
    }
    for (var quad = lane; quad < p.rope; quad += LANES) {
        keys[p.first_rope + workgroup.x * p.rope + quad] = cached(cache[place + p.latent + quad]);
    }
}
