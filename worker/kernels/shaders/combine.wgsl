// combine: y[r] += shared[r] + sum_i weights[r, i] * results[r, i], i in order.
// Workgroup: x = LANES groups of 4 columns, y = row. Twin: src/reference/combine.rs
override LANES: u32 = 64;
@group(0) @binding(0) var<storage, read> results: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> shared_result: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

struct Params {
    quads: u32,
    top_k: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let quad = workgroup.x * LANES + lane;
    let row = workgroup.y;
    if (quad < p.quads) {
        let place = row * p.quads + quad;
        var sum = shared_result[place];
        for (var i = 0u; i < p.top_k; i += 1u) {
            let pair = row * p.top_k + i;
            sum = fma(vec4<f32>(weights[pair]), results[pair * p.quads + quad], sum);
        }
        y[place] += sum;
    }
}
