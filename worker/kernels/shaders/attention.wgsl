// attention: y[r, h] = sum_t softmax_t(scale * q[r, h] . key[t, k]) * value[t, k], t <= position[r], k the keys and values
// of head h. Workgroup: x = 4 heads that share them, y = row. Tiles of LANES tokens at multiples of LANES from position 0, merged in order with a
// running maximum: a lane scores one token, then sums over the tile's tokens for some columns. Nothing depends on other
// rows. Twin: src/reference/attention.rs
override LANES: u32 = 32;
// Most groups of 4 columns of a value: MAX_VALUE in src/gpu/ops/attention.rs.
const MAX_QUADS: u32 = 128;
const LOWEST: f32 = -3.0e38;
@group(0) @binding(0) var<storage, read> queries: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> meta_rows: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> tables: array<u32>;
@group(0) @binding(3) var<storage, read> cache: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;

struct Params {
    heads: u32,
    // Heads that share keys and values, and workgroups for them.
    group: u32,
    tiles: u32,
    // Widths / 4: a head's key and value, a token's row of the cache; where its values begin.
    key: u32,
    value: u32,
    width: u32,
    first_value: u32,
    table_width: u32,
    table_rows: u32,
    // log2 of the tokens of a block; blocks of the cache; tokens that a table reaches.
    block_bits: u32,
    blocks: u32,
    reach: u32,
    scale: f32,
}
var<immediate> p: Params;

// Of the four heads, per token of the tile; where its value starts; sums per head and column.
var<workgroup> scores: array<vec4<f32>, LANES>;
var<workgroup> places: array<u32, LANES>;
var<workgroup> sums: array<vec4<f32>, 4 * MAX_QUADS>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = workgroup.y;
    let shared_head = workgroup.x / p.tiles;
    let last_head = (shared_head + 1u) * p.group - 1u;
    let first_head = shared_head * p.group + workgroup.x % p.tiles * 4u;
    // Heads beyond the last repeat it, and store what it stores.
    let heads = min(vec4<u32>(first_head) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last_head));
    let query = (heads + row * p.heads) * p.key;
    let first_key = shared_head * p.key;
    let first_value = p.first_value + shared_head * p.value;
    let info = meta_rows[row];
    let tokens = min(info.x, p.reach - 1u) + 1u;
    let table = min(info.z, p.table_rows - 1u) * p.table_width;
    for (var quad = lane; quad < p.value; quad += LANES) {
        for (var head = 0u; head < 4u; head += 1u) {
            sums[head * MAX_QUADS + quad] = vec4<f32>(0.0);
        }
    }
    var largest = vec4<f32>(LOWEST);
    var total = vec4<f32>(0.0);
    for (var start = 0u; start < tokens; start += LANES) {
        let count = min(LANES, tokens - start);
        let token = start + min(lane, count - 1u);
        let block = min(tables[table + (token >> p.block_bits)], p.blocks - 1u);
        let place = ((block << p.block_bits) + (token & ((1u << p.block_bits) - 1u))) * p.width;
        places[lane] = place + first_value;
        scores[lane] = score(query, place + first_key) * p.scale;
        workgroupBarrier();
        var highest = largest;
        for (var t = 0u; t < count; t += 1u) {
            highest = max(highest, scores[t]);
        }
        let mine = exp(scores[lane] - highest);
        workgroupBarrier();
        scores[lane] = mine;
        workgroupBarrier();
        let kept = exp(largest - highest);
        largest = highest;
        total *= kept;
        for (var t = 0u; t < count; t += 1u) {
            total += scores[t];
        }
        for (var quad = lane; quad < p.value; quad += LANES) {
            accumulate(quad, count, kept);
        }
        workgroupBarrier();
    }
    for (var quad = lane; quad < p.value; quad += LANES) {
        let place = (heads + row * p.heads) * p.value + quad;
        y[place.x] = sums[quad] / total.x;
        y[place.y] = sums[MAX_QUADS + quad] / total.y;
        y[place.z] = sums[2u * MAX_QUADS + quad] / total.z;
        y[place.w] = sums[3u * MAX_QUADS + quad] / total.w;
    }
}

fn score(query: vec4<u32>, place: u32) -> vec4<f32> {
    var sum = vec4<f32>(0.0);
    for (var quad = 0u; quad < p.key; quad += 1u) {
        let key = cache[place + quad];
        sum.x = add4(key, queries[query.x + quad], sum.x);
        sum.y = add4(key, queries[query.y + quad], sum.y);
        sum.z = add4(key, queries[query.z + quad], sum.z);
        sum.w = add4(key, queries[query.w + quad], sum.w);
    }
    return sum;
}

fn add4(a: vec4<f32>, b: vec4<f32>, start: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, start))));
}

fn accumulate(quad: u32, count: u32, kept: vec4<f32>) {
    var a = sums[quad] * kept.x;
    var b = sums[MAX_QUADS + quad] * kept.y;
    var c = sums[2u * MAX_QUADS + quad] * kept.z;
    var d = sums[3u * MAX_QUADS + quad] * kept.w;
    for (var t = 0u; t < count; t += 1u) {
        let value = cache[places[t] + quad];
        let share = scores[t];
        a = fma(vec4<f32>(share.x), value, a);
        b = fma(vec4<f32>(share.y), value, b);
        c = fma(vec4<f32>(share.z), value, c);
        d = fma(vec4<f32>(share.w), value, d);
    }
    sums[quad] = a;
    sums[MAX_QUADS + quad] = b;
    sums[2u * MAX_QUADS + quad] = c;
    sums[3u * MAX_QUADS + quad] = d;
}
