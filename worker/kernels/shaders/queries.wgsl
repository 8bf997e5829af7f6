// queries: y[r, h] = query_scale[r] * [w_k[h]^T q_nope[r, h], rotate(q_rope[r, h])].
// Workgroup: x = LANES groups of 4 outputs, y = head, z = tile of ROWS rows (1, 4, 8 or 16). The sum is one chain of fma over
// the rows of the head's keys, in order. How queries are read: shared/queries_*.wgsl. Twin: src/reference/queries.rs
override ROWS: u32 = 4;
override LANES: u32 = 32;
@group(0) @binding(0) var<storage, read> x: array<Words>;
@group(0) @binding(1) var<storage, read> weights: array<Quads>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
@group(0) @binding(3) var<storage, read> rotary: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> meta_rows: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>;

struct Params {
    rows: u32,
    heads: u32,
    // Widths / 4.
    nope: u32,
    rope: u32,
    latent: u32,
    // First head of the part; rows of the weight per head.
    first_head: u32,
    head_rows: u32,
    // Fours of columns to the part, and words to the scales.
    weight: u32,
    scale: u32,
    // As in shared/tile.wgsl.
    chunks: u32,
    scale_stride: u32,
    scale_step: u32,
}
var<immediate> p: Params;

// Of four rows: of activations, of a weight, or of sums.
struct Four {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

fn values(loaded: Words) -> vec4<f32> {
    return bitcast<vec4<f32>>(words(loaded));
}

fn weight4(row: u32, quad: u32) -> vec4<f32> {
    let place = p.weight + row * p.latent + quad;
    return quad_of(weights[quads_at(place)], place);
}

// Of a row of the whole matrix.
fn row_scale(row: u32, quad: u32) -> f32 {
    let at = row_scales(p.scale, row);
    return scale_of(scales[scale_at(at, quad / 4u)], at, quad / 4u);
}

// Four rows of the weight from `row` of the part on, which is `scale_row` of the matrix. `shared_scale` is that of all,
// unless each has its own.
fn weight_rows(row: u32, scale_row: u32, quad: u32, shared_scale: f32) -> Four {
    var scale = vec4<f32>(shared_scale);
    if (SCALE_PER_ROW) {
        scale = vec4<f32>(
            row_scale(scale_row, quad),
            row_scale(scale_row + 1u, quad),
            row_scale(scale_row + 2u, quad),
            row_scale(scale_row + 3u, quad),
        );
    }
    return Four(
        weight4(row, quad) * scale.x,
        weight4(row + 1u, quad) * scale.y,
        weight4(row + 2u, quad) * scale.z,
        weight4(row + 3u, quad) * scale.w,
    );
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let quad = workgroup.x * LANES + lane;
    let head = p.first_head + workgroup.y;
    let first = workgroup.z * ROWS;
    var at: array<vec4<u32>, 4>;
    for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
        let rows = min(vec4<u32>(first + i * 4u) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.rows - 1u));
        at[i] = (rows * p.heads + head) * (p.nope + p.rope);
    }
    var sums: array<Four, 4>;
    // All lanes, so that those of a subgroup read together.
    if (workgroup.x * LANES < p.latent) {
        let column = min(quad, p.latent - 1u);
        for (var n = 0u; n < p.nope; n += 2u) {
            let row = workgroup.y * p.head_rows + n * 4u;
            let scale_row = head * p.head_rows + n * 4u;
            // Eight rows lie in one block: heads and blocks start at multiples of eight rows.
            var shared_scale = 1.0;
            if (!SCALE_PER_ROW) {
                shared_scale = row_scale(scale_row, column);
            }
            let lower = weight_rows(row, scale_row, column, shared_scale);
            let upper = weight_rows(row + 4u, scale_row + 4u, column, shared_scale);
            for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
                let pair = load_pair(lane, at[i] + n);
                sums[i] = add_rows(upper, pair.second, add_rows(lower, pair.first, sums[i]));
            }
        }
    }
    if (quad >= p.latent + p.rope) {
        return;
    }
    var whole = 1.0;
    if (HAS_MATRIX_SCALE) {
        whole = matrix_scale(scales[p.scale]);
    }
    for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
        let row = first + i * 4u;
        store(row, head, quad, at[i].x, sums[i].a * whole);
        if (ROWS > 1u) {
            store(row + 1u, head, quad, at[i].y, sums[i].b * whole);
            store(row + 2u, head, quad, at[i].z, sums[i].c * whole);
            store(row + 3u, head, quad, at[i].w, sums[i].d * whole);
        }
    }
}

fn store(row: u32, head: u32, quad: u32, at: u32, sum: vec4<f32>) {
    if (row >= p.rows) {
        return;
    }
    var value = sum;
    if (quad >= p.latent) {
        let turn = quad - p.latent;
        value = rotate(values(x[at + p.nope + turn]), rotary[row * p.rope + turn]);
    }
    let scale = bitcast<f32>(meta_rows[row].w);
    y[(row * p.heads + head) * (p.latent + p.rope) + quad] = value * scale;
}

// Adds four columns of queries times as many rows of the weight.
fn add_rows(weight: Four, query: Four, start: Four) -> Four {
    var sums = start;
    sums.a = add4(query.a, weight, start.a);
    if (ROWS > 1u) {
        sums.b = add4(query.b, weight, start.b);
        sums.c = add4(query.c, weight, start.c);
        sums.d = add4(query.d, weight, start.d);
    }
    return sums;
}

fn add4(q: vec4<f32>, w: Four, start: vec4<f32>) -> vec4<f32> {
    var sum = fma(vec4<f32>(q.x), w.a, start);
    sum = fma(vec4<f32>(q.y), w.b, sum);
    sum = fma(vec4<f32>(q.z), w.c, sum);
    return fma(vec4<f32>(q.w), w.d, sum);
}
