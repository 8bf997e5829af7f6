// queries: y[r, h] = query_scale[r] * [w_k[h]^T q_nope[r, h], rotate(q_rope[r, h])].
// Workgroup: x = LANES groups of 4 outputs, y = head, z = tile of ROWS rows. The sum is one chain of fma over the rows of
// the head's keys, in order. Twin: src/reference/queries.rs
override ROWS: u32 = 4;
override LANES: u32 = 32;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
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

fn weight4(row: u32, quad: u32) -> vec4<f32> {
    let place = p.weight + row * p.latent + quad;
    return quad_of(weights[quads_at(place)], place);
}

// Of a row of the whole matrix.
fn row_scale(row: u32, quad: u32) -> f32 {
    let at = row_scales(p.scale, row);
    return scale_of(scales[scale_at(at, quad / 4u)], at, quad / 4u);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let quad = workgroup.x * LANES + lane;
    let head = p.first_head + workgroup.y;
    let first = workgroup.z * ROWS;
    let rows = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.rows - 1u));
    let at = (rows * p.heads + head) * (p.nope + p.rope);
    var a = vec4<f32>(0.0);
    var b = vec4<f32>(0.0);
    var c = vec4<f32>(0.0);
    var d = vec4<f32>(0.0);
    if (quad < p.latent) {
        let local = workgroup.y * p.head_rows;
        for (var n = 0u; n < p.nope; n += 1u) {
            let row = local + n * 4u;
            let scale_row = head * p.head_rows + n * 4u;
            // Four rows lie in one block: heads and blocks start at multiples of four rows.
            var by_row = vec4<f32>(row_scale(scale_row, quad));
            if (SCALE_PER_ROW) {
                by_row.y = row_scale(scale_row + 1u, quad);
                by_row.z = row_scale(scale_row + 2u, quad);
                by_row.w = row_scale(scale_row + 3u, quad);
            }
            let w0 = weight4(row, quad) * by_row.x;
            let w1 = weight4(row + 1u, quad) * by_row.y;
            let w2 = weight4(row + 2u, quad) * by_row.z;
            let w3 = weight4(row + 3u, quad) * by_row.w;
            a = add4(x[at.x + n], w0, w1, w2, w3, a);
            if (ROWS > 1u) {
                b = add4(x[at.y + n], w0, w1, w2, w3, b);
                c = add4(x[at.z + n], w0, w1, w2, w3, c);
                d = add4(x[at.w + n], w0, w1, w2, w3, d);
            }
        }
        if (HAS_MATRIX_SCALE) {
            let whole = matrix_scale(scales[p.scale]);
            a *= whole;
            b *= whole;
            c *= whole;
            d *= whole;
        }
    } else if (quad < p.latent + p.rope) {
        let turn = quad - p.latent;
        a = rotate(x[at.x + p.nope + turn], rotary[rows.x * p.rope + turn]);
        if (ROWS > 1u) {
            b = rotate(x[at.y + p.nope + turn], rotary[rows.y * p.rope + turn]);
            c = rotate(x[at.z + p.nope + turn], rotary[rows.z * p.rope + turn]);
            d = rotate(x[at.w + p.nope + turn], rotary[rows.w * p.rope + turn]);
        }
    }
    if (quad < p.latent + p.rope) {
        let place = (rows * p.heads + head) * (p.latent + p.rope) + quad;
        y[place.x] = a * query_scale(rows.x);
        if (ROWS > 1u) {
            // Rows beyond the last repeat it, and store what it stores.
            y[place.y] = b * query_scale(rows.y);
            y[place.z] = c * query_scale(rows.z);
            y[place.w] = d * query_scale(rows.w);
        }
    }
}

fn query_scale(row: u32) -> f32 {
    return bitcast<f32>(meta_rows[row].w);
}

fn add4(q: vec4<f32>, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>, w3: vec4<f32>, start: vec4<f32>) -> vec4<f32> {
    var sum = fma(vec4<f32>(q.x), w0, start);
    sum = fma(vec4<f32>(q.y), w1, sum);
    sum = fma(vec4<f32>(q.z), w2, sum);
    return fma(vec4<f32>(q.w), w3, sum);
}
