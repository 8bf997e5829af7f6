// turn_queries: y[r, h] = query_scale[r] * [q_nope[r, h], rotate(q_rope[r, h])].
// Workgroup: x = LANES groups of 4 columns of all heads, y = row. Twin: src/reference/expanded_attention.rs
override LANES: u32 = 64;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> rotary: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> meta_rows: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;

struct Params {
    first_row: u32,
    // Widths / 4: of all heads, and of a head without and with position.
    width: u32,
    nope: u32,
    rope: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = p.first_row + workgroup.y;
    let quad = workgroup.x * LANES + lane;
    if (quad >= p.width) {
        return;
    }
    let place = row * p.width + quad;
    let column = quad % (p.nope + p.rope);
    var query = x[place];
    if (column >= p.nope) {
        query = rotate(query, rotary[row * p.rope + column - p.nope]);
    }
    y[place] = query * bitcast<f32>(meta_rows[row].w);
}
