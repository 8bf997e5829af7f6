// rotate_qkv: y[r, h] = query_scale[r] * rotate(q[r, h]); cache[slot[r]] = [rotate(k[r, ..]), v[r, ..]].
// Workgroup: x = LANES groups of 4 columns of the queries, keys and values one after the other, y = row.
// How values are cached: shared/cache_*.wgsl. Twin: src/reference/rotate_qkv.rs
override LANES: u32 = 64;
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> rotary: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> meta_rows: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> cache: array<Cached>;

struct Params {
    // Widths / 4: a head, all queries, all keys or values.
    head: u32,
    queries: u32,
    keys: u32,
    slots: u32,
}
var<immediate> p: Params;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = workgroup.y;
    let quad = workgroup.x * LANES + lane;
    let info = meta_rows[row];
    if (quad < p.queries) {
        let place = row * p.queries + quad;
        y[place] = rotate(q[place], rotary[row * p.head + quad % p.head]) * bitcast<f32>(info.w);
        return;
    }
    let column = quad - p.queries;
    if (column >= 2u * p.keys || info.y >= p.slots) {
        return;
    }
    let place = info.y * 2u * p.keys + column;
    if (column < p.keys) {
        cache[place] = to_cache(rotate(k[row * p.keys + column], rotary[row * p.head + column % p.head]));
    } else {
        cache[place] = to_cache(v[row * p.keys + column - p.keys]);
    }
}
