// rms_norm: y[r] = x[s] * w / sqrt(mean(x[s]^2) + eps), s = pick[r] or r. One workgroup per row; order of the sum:
// shared/norm.wgsl. Twin: src/reference/rms_norm.rs
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> pick: array<u32>;
@group(0) @binding(2) var<storage, read> weight: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

struct Params {
    // Columns / 4.
    quads: u32,
    // Words to the weight.
    weight: u32,
    eps: f32,
    // Rows of the input where rows are picked, else 0.
    picked: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var row = workgroup.x;
    if (p.picked > 0u) {
        row = min(pick[row], p.picked - 1u);
    }
    let start = row * p.quads;
    let scale = rms_scale(lane, start, p.quads, p.eps);
    for (var quad = lane; quad < p.quads; quad += LANES) {
        y[workgroup.x * p.quads + quad] = x[start + quad] * scale * norm_weight(p.weight, quad);
    }
}
