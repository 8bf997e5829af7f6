// embed: y[r] = table[tokens[r]], bfloat16 widened. Rows whose token is not in this part of the table stay as they are.
// Workgroup: x = LANES groups of 4 columns, y = row. Twin: src/reference/embed.rs
override LANES: u32 = 64;
@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(1) var<storage, read> table: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

struct Params {
    // Columns / 4.
    quads: u32,
    // First token of the part, and how many it holds.
    first: u32,
    count: u32,
    // 8-byte units to the part's first row.
    base: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let quad = workgroup.x * LANES + lane;
    let token = tokens[workgroup.y] - p.first;
    if (token < p.count && quad < p.quads) {
        let words = table[p.base + token * p.quads + quad];
        let codes = vec4<u32>(words.x << 16u, words.x & 0xffff0000u, words.y << 16u, words.y & 0xffff0000u);
        y[workgroup.y * p.quads + quad] = bitcast<vec4<f32>>(codes);
    }
}
