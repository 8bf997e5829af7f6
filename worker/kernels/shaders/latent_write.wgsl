// latent_write: cache[slot[r]] = [rms_norm(latent[r]), rotate(rope[r])]. One workgroup per row; order of the sum:
// shared/norm.wgsl; how values are cached: shared/cache_*.wgsl. Twin: src/reference/latent.rs
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<u32>;
@group(0) @binding(2) var<storage, read> rotary: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> meta_rows: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> cache: array<Cached>;

struct Params {
    // Widths / 4.
    latent: u32,
    rope: u32,
    weight: u32,
    eps: f32,
    slots: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = workgroup.x;
    let slot = meta_rows[row].y;
    let start = row * (p.latent + p.rope);
    let scale = rms_scale(lane, start, p.latent, p.eps);
    if (slot < p.slots) {
        let place = slot * (p.latent + p.rope);
        for (var quad = lane; quad < p.latent; quad += LANES) {
            cache[place + quad] = to_cache(x[start + quad] * scale * norm_weight(p.weight, quad));
        }
        for (var quad = lane; quad < p.rope; quad += LANES) {
            let turned = rotate(x[start + p.latent + quad], rotary[row * p.rope + quad]);
            cache[place + p.latent + quad] = to_cache(turned);
        }
    }
}
