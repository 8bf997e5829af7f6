// attention, as attention.wgsl, for devices with subgroups of 8 lanes where loads and barriers are dear: a workgroup is
// one subgroup. y[r, h] = sum_t softmax_t(scale * q[r, h] . key[t, k]) * value[t, k], t <= position[r].
// Workgroup: x = 4 heads that share keys and values, or 8 where values are SMALL, y = row. Tiles of 8 tokens at multiples of 8 from position 0,
// merged in order with a running maximum: a lane scores one token, then sums over the tile's tokens for some columns.
// Lanes read the queries together and hand them around. Twin: src/reference/attention.rs
override LANES: u32 = 8;
// A value is at most 64 wide (SMALL_VALUE in src/gpu/ops/attention.rs): sums stay in registers.
override SMALL: bool = false;
// Most groups of 4 columns of a value: MAX_VALUE in src/gpu/ops/attention.rs.
const MAX_QUADS: u32 = 128;
const LOWEST: f32 = -3.0e38;
@group(0) @binding(0) var<storage, read> queries: array<vec2<u64>>;
@group(0) @binding(1) var<storage, read> meta_rows: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> tables: array<u32>;
@group(0) @binding(3) var<storage, read> cache: array<vec2<u64>>;
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

// Sums per head and column; each is touched by one lane only.
var<workgroup> sums: array<vec4<f32>, 4 * MAX_QUADS>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    if (SMALL) {
        attend_small(workgroup, lane);
    } else {
        attend(workgroup, lane);
    }
}

fn attend(workgroup: vec3<u32>, lane: u32) {
    let row = workgroup.y;
    let shared_head = workgroup.x / p.tiles;
    let last_head = (shared_head + 1u) * p.group - 1u;
    let first_head = shared_head * p.group + workgroup.x % p.tiles * 4u;
    // Heads beyond the last repeat it, and store what it stores.
    let heads = min(vec4<u32>(first_head) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last_head));
    // Of the query that this lane reads: head lane % 4, at even or odd groups of columns.
    let query = (min(first_head + (lane & 3u), last_head) + row * p.heads) * p.key + (lane >> 2u);
    let first_key = shared_head * p.key;
    let first_value = p.first_value + shared_head * p.value;
    let info = meta_rows[row];
    let tokens = min(info.x, p.reach - 1u) + 1u;
    let table = min(info.z, p.table_rows - 1u) * p.table_width;
    for (var quad = lane; quad < p.value; quad += 8u) {
        for (var head = 0u; head < 4u; head += 1u) {
            sums[head * MAX_QUADS + quad] = vec4<f32>(0.0);
        }
    }
    var largest = vec4<f32>(LOWEST);
    var total = vec4<f32>(0.0);
    for (var start = 0u; start < tokens; start += 8u) {
        let count = min(8u, tokens - start);
        let token = start + min(lane, count - 1u);
        let block = min(tables[table + (token >> p.block_bits)], p.blocks - 1u);
        let place = ((block << p.block_bits) + (token & ((1u << p.block_bits) - 1u))) * p.width;
        // Lanes beyond the last token repeat it for the maximum; their share is nothing.
        let mine = score(query, place + first_key) * p.scale;
        let highest = max(largest, subgroupMax(mine));
        let share = select(vec4<f32>(0.0), exp(mine - highest), vec4<bool>(lane < count));
        let kept = exp(largest - highest);
        largest = highest;
        total = fma(total, kept, sum_shares(share));
        for (var quad = 0u; quad < p.value; quad += 8u) {
            accumulate(min(quad + lane, p.value - 1u), quad + lane < p.value, share, place + first_value, kept);
        }
    }
    for (var quad = lane; quad < p.value; quad += 8u) {
        let place = (heads + row * p.heads) * p.value + quad;
        y[place.x] = sums[quad] / total.x;
        y[place.y] = sums[MAX_QUADS + quad] / total.y;
        y[place.z] = sums[2u * MAX_QUADS + quad] / total.z;
        y[place.w] = sums[3u * MAX_QUADS + quad] / total.w;
    }
}

// The widths are multiples of 16: groups of columns come in twos.
fn score(query: u32, place: u32) -> vec4<f32> {
    var sum = vec4<f32>(0.0);
    for (var quad = 0u; quad < p.key; quad += 2u) {
        let key = values(cache[place + quad]);
        let next = values(cache[place + quad + 1u]);
        sum = add8(values(queries[query + quad]), key, next, sum);
    }
    return sum;
}

fn add4(a: vec4<f32>, b: vec4<f32>, start: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, start))));
}

// A load of 8 bytes costs what one of 4 does.
fn values(loaded: vec2<u64>) -> vec4<f32> {
    let high = loaded >> vec2<u32>(32u);
    return bitcast<vec4<f32>>(vec4<u32>(u32(loaded.x), u32(high.x), u32(loaded.y), u32(high.y)));
}

struct Heads {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

fn add_token(sum: Heads, share: vec4<f32>, value: vec4<f32>) -> Heads {
    return Heads(
        fma(vec4<f32>(share.x), value, sum.a),
        fma(vec4<f32>(share.y), value, sum.b),
        fma(vec4<f32>(share.z), value, sum.c),
        fma(vec4<f32>(share.w), value, sum.d),
    );
}

fn accumulate(quad: u32, is_column: bool, share: vec4<f32>, place: u32, kept: vec4<f32>) {
    var sum = Heads(
        sums[quad] * kept.x,
        sums[MAX_QUADS + quad] * kept.y,
        sums[2u * MAX_QUADS + quad] * kept.z,
        sums[3u * MAX_QUADS + quad] * kept.w,
    );
    sum = add_token(sum, subgroupBroadcast(share, 0u), values(cache[subgroupBroadcast(place, 0u) + quad]));
    sum = add_token(sum, subgroupBroadcast(share, 1u), values(cache[subgroupBroadcast(place, 1u) + quad]));
    sum = add_token(sum, subgroupBroadcast(share, 2u), values(cache[subgroupBroadcast(place, 2u) + quad]));
    sum = add_token(sum, subgroupBroadcast(share, 3u), values(cache[subgroupBroadcast(place, 3u) + quad]));
    sum = add_token(sum, subgroupBroadcast(share, 4u), values(cache[subgroupBroadcast(place, 4u) + quad]));
    sum = add_token(sum, subgroupBroadcast(share, 5u), values(cache[subgroupBroadcast(place, 5u) + quad]));
    sum = add_token(sum, subgroupBroadcast(share, 6u), values(cache[subgroupBroadcast(place, 6u) + quad]));
    sum = add_token(sum, subgroupBroadcast(share, 7u), values(cache[subgroupBroadcast(place, 7u) + quad]));
    if (is_column) {
        sums[quad] = sum.a;
        sums[MAX_QUADS + quad] = sum.b;
        sums[2u * MAX_QUADS + quad] = sum.c;
        sums[3u * MAX_QUADS + quad] = sum.d;
    }
}

// Sums of 8 heads for one group of columns.
struct Column {
    low: Heads,
    high: Heads,
}

// As attend, for 8 heads, each lane with groups of columns `lane` and `lane + 8`.
fn attend_small(workgroup: vec3<u32>, lane: u32) {
    let row = workgroup.y;
    let shared_head = workgroup.x / p.tiles;
    let last_head = (shared_head + 1u) * p.group - 1u;
    let first_head = shared_head * p.group + workgroup.x % p.tiles * 8u;
    let heads = min(vec4<u32>(first_head) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last_head));
    let heads2 = min(vec4<u32>(first_head) + vec4<u32>(4u, 5u, 6u, 7u), vec4<u32>(last_head));
    let query = (min(first_head + (lane & 3u), last_head) + row * p.heads) * p.key + (lane >> 2u);
    let query2 = (min(first_head + 4u + (lane & 3u), last_head) + row * p.heads) * p.key + (lane >> 2u);
    let first_key = shared_head * p.key;
    let first_value = p.first_value + shared_head * p.value;
    let info = meta_rows[row];
    let tokens = min(info.x, p.reach - 1u) + 1u;
    let table = min(info.z, p.table_rows - 1u) * p.table_width;
    let last_quad = p.value - 1u;
    var column: Column;
    var column2: Column;
    var largest = vec4<f32>(LOWEST);
    var largest2 = vec4<f32>(LOWEST);
    var total = vec4<f32>(0.0);
    var total2 = vec4<f32>(0.0);
    for (var start = 0u; start < tokens; start += 8u) {
        let count = min(8u, tokens - start);
        let token = start + min(lane, count - 1u);
        let block = min(tables[table + (token >> p.block_bits)], p.blocks - 1u);
        let place = ((block << p.block_bits) + (token & ((1u << p.block_bits) - 1u))) * p.width;
        var mine = vec4<f32>(0.0);
        var mine2 = vec4<f32>(0.0);
        for (var quad = 0u; quad < p.key; quad += 2u) {
            let key = values(cache[place + first_key + quad]);
            let next = values(cache[place + first_key + quad + 1u]);
            mine = add8(values(queries[query + quad]), key, next, mine);
            mine2 = add8(values(queries[query2 + quad]), key, next, mine2);
        }
        mine *= p.scale;
        mine2 *= p.scale;
        let highest = max(largest, subgroupMax(mine));
        let highest2 = max(largest2, subgroupMax(mine2));
        let share = select(vec4<f32>(0.0), exp(mine - highest), vec4<bool>(lane < count));
        let share2 = select(vec4<f32>(0.0), exp(mine2 - highest2), vec4<bool>(lane < count));
        let kept = exp(largest - highest);
        let kept2 = exp(largest2 - highest2);
        largest = highest;
        largest2 = highest2;
        total = fma(total, kept, sum_shares(share));
        total2 = fma(total2, kept2, sum_shares(share2));
        let quad = min(lane, last_quad);
        let quad2 = min(lane + 8u, last_quad);
        column = Column(fade(column.low, kept), fade(column.high, kept2));
        column2 = Column(fade(column2.low, kept), fade(column2.high, kept2));
        column = add_tokens(column, share, share2, place + first_value, quad);
        column2 = add_tokens(column2, share, share2, place + first_value, quad2);
    }
    if (lane < p.value) {
        store_heads(column.low, total, (heads + row * p.heads) * p.value + lane);
        store_heads(column.high, total2, (heads2 + row * p.heads) * p.value + lane);
    }
    if (lane + 8u < p.value) {
        store_heads(column2.low, total, (heads + row * p.heads) * p.value + lane + 8u);
        store_heads(column2.high, total2, (heads2 + row * p.heads) * p.value + lane + 8u);
    }
}

// The scores of a token with 4 heads for two groups of columns, of which the lanes hold the queries.
fn add8(part: vec4<f32>, key: vec4<f32>, next: vec4<f32>, start: vec4<f32>) -> vec4<f32> {
    var sum = start;
    sum.x = add4(key, subgroupBroadcast(part, 0u), sum.x);
    sum.y = add4(key, subgroupBroadcast(part, 1u), sum.y);
    sum.z = add4(key, subgroupBroadcast(part, 2u), sum.z);
    sum.w = add4(key, subgroupBroadcast(part, 3u), sum.w);
    sum.x = add4(next, subgroupBroadcast(part, 4u), sum.x);
    sum.y = add4(next, subgroupBroadcast(part, 5u), sum.y);
    sum.z = add4(next, subgroupBroadcast(part, 6u), sum.z);
    sum.w = add4(next, subgroupBroadcast(part, 7u), sum.w);
    return sum;
}

fn sum_shares(share: vec4<f32>) -> vec4<f32> {
    var sum = subgroupBroadcast(share, 0u);
    sum += subgroupBroadcast(share, 1u);
    sum += subgroupBroadcast(share, 2u);
    sum += subgroupBroadcast(share, 3u);
    sum += subgroupBroadcast(share, 4u);
    sum += subgroupBroadcast(share, 5u);
    sum += subgroupBroadcast(share, 6u);
    sum += subgroupBroadcast(share, 7u);
    return sum;
}

fn fade(sum: Heads, kept: vec4<f32>) -> Heads {
    return Heads(sum.a * kept.x, sum.b * kept.y, sum.c * kept.z, sum.d * kept.w);
}

fn add_tokens(start: Column, share: vec4<f32>, share2: vec4<f32>, place: u32, quad: u32) -> Column {
    var sum = start;
    let value0 = values(cache[subgroupBroadcast(place, 0u) + quad]);
    sum = Column(add_token(sum.low, subgroupBroadcast(share, 0u), value0), add_token(sum.high, subgroupBroadcast(share2, 0u), value0));
    let value1 = values(cache[subgroupBroadcast(place, 1u) + quad]);
    sum = Column(add_token(sum.low, subgroupBroadcast(share, 1u), value1), add_token(sum.high, subgroupBroadcast(share2, 1u), value1));
    let value2 = values(cache[subgroupBroadcast(place, 2u) + quad]);
    sum = Column(add_token(sum.low, subgroupBroadcast(share, 2u), value2), add_token(sum.high, subgroupBroadcast(share2, 2u), value2));
    let value3 = values(cache[subgroupBroadcast(place, 3u) + quad]);
    sum = Column(add_token(sum.low, subgroupBroadcast(share, 3u), value3), add_token(sum.high, subgroupBroadcast(share2, 3u), value3));
    let value4 = values(cache[subgroupBroadcast(place, 4u) + quad]);
    sum = Column(add_token(sum.low, subgroupBroadcast(share, 4u), value4), add_token(sum.high, subgroupBroadcast(share2, 4u), value4));
    let value5 = values(cache[subgroupBroadcast(place, 5u) + quad]);
    sum = Column(add_token(sum.low, subgroupBroadcast(share, 5u), value5), add_token(sum.high, subgroupBroadcast(share2, 5u), value5));
    let value6 = values(cache[subgroupBroadcast(place, 6u) + quad]);
    sum = Column(add_token(sum.low, subgroupBroadcast(share, 6u), value6), add_token(sum.high, subgroupBroadcast(share2, 6u), value6));
    let value7 = values(cache[subgroupBroadcast(place, 7u) + quad]);
    return Column(add_token(sum.low, subgroupBroadcast(share, 7u), value7), add_token(sum.high, subgroupBroadcast(share2, 7u), value7));
}

fn store_heads(sum: Heads, total: vec4<f32>, place: vec4<u32>) {
    y[place.x] = sum.a / total.x;
    y[place.y] = sum.b / total.y;
    y[place.z] = sum.c / total.z;
    y[place.w] = sum.d / total.w;
}
