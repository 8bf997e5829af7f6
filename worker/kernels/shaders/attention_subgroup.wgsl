// attention, as attention.wgsl, for devices with subgroups of 8 lanes where a load costs as much as many sums, and barriers
// are dear: a workgroup is one subgroup. y[r, h] = sum_t softmax_t(scale * q[r, h] . key[t, k]) * value[t, k].
// Workgroup: x = up to 4 BLOCKS heads that share keys and values, y = row, z = split (shared/attention.wgsl).
// A lane scores every eighth token of the split, for all heads; lanes read the queries together and hand them around. Then
// a lane sums over the split's tokens for two groups of columns of all heads at a time, in registers; lanes hand around
// where tokens are and their shares. Nothing depends on other rows. How values are cached: shared/cache_*.wgsl.
// Twin: src/reference/attention.rs
override LANES: u32 = 8;
// Heads by fours, at most 4.
override BLOCKS: u32 = 1;
// Tokens of a split: p.split.
override SPLIT: u32 = 512;
const BLOCKS_AT_MOST: u32 = 4;
@group(0) @binding(0) var<storage, read> queries: array<Words>;
@group(0) @binding(1) var<storage, read> meta_rows: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> tables: array<u32>;
@group(0) @binding(3) var<storage, read> cache: array<Cached>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> partials: array<vec4<f32>>;

// Per token and block: scores, then shares, of four heads. Each is touched by one lane only.
var<workgroup> scores: array<Words, SPLIT * BLOCKS>;

// Of four heads.
struct Heads {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// Sums of all heads for two groups of columns.
struct Columns {
    low: array<Heads, BLOCKS_AT_MOST>,
    high: array<Heads, BLOCKS_AT_MOST>,
}

// The split's tokens, and where the sequence's table begins.
struct Span {
    first: u32,
    end: u32,
    table: u32,
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = p.first_row + workgroup.y;
    let info = meta_rows[row];
    let tokens = tokens_of(info);
    let first = workgroup.z * p.split;
    if (first >= tokens) {
        return;
    }
    let span = Span(first, min(first + p.split, tokens), min(info.z, p.table_rows - 1u) * p.table_width);
    let tile = p.first_tile + workgroup.x;
    let shared_head = tile / p.tiles;
    let last_head = (shared_head + 1u) * p.group - 1u;
    let first_head = shared_head * p.group + tile % p.tiles * 4u * BLOCKS;
    var largest = score(lane, span, first_head, last_head, row, shared_head * p.key);
    var total: array<vec4<f32>, BLOCKS_AT_MOST>;
    for (var b = 0u; b < BLOCKS; b += 1u) {
        largest[b] = subgroupMax(largest[b]);
    }
    for (var start = span.first; start < span.end; start += 8u) {
        let token = start + lane;
        for (var b = 0u; b < BLOCKS; b += 1u) {
            let place = (token - span.first) * BLOCKS + b;
            let share = exp(values(scores[place]) - largest[b]);
            // Lanes beyond the last token repeated it: their share is nothing.
            let counted = select(vec4<f32>(0.0), share, vec4<bool>(token < span.end));
            scores[place] = packed(counted);
            total[b] += counted;
        }
    }
    for (var b = 0u; b < BLOCKS; b += 1u) {
        total[b] = sum_lanes(total[b]);
    }
    let first_value = p.first_value + shared_head * p.value;
    for (var start = 0u; start < p.value; start += 16u) {
        let quad = start + lane;
        let sums = attend(lane, span, first_value + min(quad, p.value - 1u), first_value + min(quad + 8u, p.value - 1u));
        for (var b = 0u; b < BLOCKS; b += 1u) {
            let heads = four(first_head + b * 4u, last_head);
            if (tokens <= p.split) {
                let place = (heads + row * p.heads) * p.value + quad;
                if (quad < p.value) {
                    store(sums.low[b], total[b], place);
                }
                if (quad + 8u < p.value) {
                    store(sums.high[b], total[b], place + 8u);
                }
            } else {
                let place = vec4<u32>(
                    partial_place(workgroup.y, workgroup.z, heads.x),
                    partial_place(workgroup.y, workgroup.z, heads.y),
                    partial_place(workgroup.y, workgroup.z, heads.z),
                    partial_place(workgroup.y, workgroup.z, heads.w),
                );
                if (quad < p.value) {
                    store_partial(sums.low[b], place + quad);
                }
                if (quad + 8u < p.value) {
                    store_partial(sums.high[b], place + quad + 8u);
                }
                if (quad == 0u) {
                    let stats = place + p.value;
                    partials[stats.x] = vec4<f32>(largest[b].x, total[b].x, 0.0, 0.0);
                    partials[stats.y] = vec4<f32>(largest[b].y, total[b].y, 0.0, 0.0);
                    partials[stats.z] = vec4<f32>(largest[b].z, total[b].z, 0.0, 0.0);
                    partials[stats.w] = vec4<f32>(largest[b].w, total[b].w, 0.0, 0.0);
                }
            }
        }
    }
}

// Four heads from `first` on. Those beyond the last repeat it, and store what it stores.
fn four(first: u32, last: u32) -> vec4<u32> {
    return min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
}

// Where a token's row of the cache begins; tokens beyond the last repeat it.
fn place_of(span: Span, any_token: u32) -> u32 {
    let token = min(any_token, span.end - 1u);
    let block = min(tables[span.table + (token >> p.block_bits)], p.blocks - 1u);
    return ((block << p.block_bits) + (token & ((1u << p.block_bits) - 1u))) * p.width;
}

// Scores of this lane's tokens, to workgroup memory, two at a time; gives the largest of them. The widths are multiples of
// 16: groups of columns come in twos.
fn score(
    lane: u32,
    span: Span,
    first_head: u32,
    last_head: u32,
    row: u32,
    first_key: u32,
) -> array<vec4<f32>, BLOCKS_AT_MOST> {
    var largest: array<vec4<f32>, BLOCKS_AT_MOST>;
    // Of the queries that this lane reads: head lane % 4 of a block, at even or odd groups of columns.
    var query: array<u32, BLOCKS_AT_MOST>;
    for (var b = 0u; b < BLOCKS; b += 1u) {
        let head = min(first_head + b * 4u + (lane & 3u), last_head);
        query[b] = (head + row * p.heads) * p.key + (lane >> 2u);
        largest[b] = vec4<f32>(LOWEST);
    }
    for (var start = span.first; start < span.end; start += 16u) {
        let token = start + lane;
        let place = place_of(span, token) + first_key;
        let place2 = place_of(span, token + 8u) + first_key;
        var sum: array<vec4<f32>, BLOCKS_AT_MOST>;
        var sum2: array<vec4<f32>, BLOCKS_AT_MOST>;
        for (var quad = 0u; quad < p.key; quad += 2u) {
            let key = cached(cache[place + quad]);
            let next = cached(cache[place + quad + 1u]);
            let key2 = cached(cache[place2 + quad]);
            let next2 = cached(cache[place2 + quad + 1u]);
            for (var b = 0u; b < BLOCKS; b += 1u) {
                let part = values(queries[query[b] + quad]);
                let first = four_heads(part);
                let second = four_more(part);
                sum[b] = add_key(next, second, add_key(key, first, sum[b]));
                sum2[b] = add_key(next2, second, add_key(key2, first, sum2[b]));
            }
        }
        for (var b = 0u; b < BLOCKS; b += 1u) {
            let place = (token - span.first) * BLOCKS + b;
            let scaled = sum[b] * p.scale;
            let scaled2 = sum2[b] * p.scale;
            scores[place] = packed(scaled);
            scores[place + 8u * BLOCKS] = packed(scaled2);
            largest[b] = max(largest[b], max(scaled, scaled2));
        }
    }
    return largest;
}

// Of what the lanes hold of a query each, those of the first four lanes, and of the others.
fn four_heads(part: vec4<f32>) -> Heads {
    return Heads(
        subgroupBroadcast(part, 0u),
        subgroupBroadcast(part, 1u),
        subgroupBroadcast(part, 2u),
        subgroupBroadcast(part, 3u),
    );
}

fn four_more(part: vec4<f32>) -> Heads {
    return Heads(
        subgroupBroadcast(part, 4u),
        subgroupBroadcast(part, 5u),
        subgroupBroadcast(part, 6u),
        subgroupBroadcast(part, 7u),
    );
}

fn add_key(key: vec4<f32>, query: Heads, start: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        add4(key, query.a, start.x),
        add4(key, query.b, start.y),
        add4(key, query.c, start.z),
        add4(key, query.d, start.w),
    );
}

fn add4(a: vec4<f32>, b: vec4<f32>, start: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, start))));
}

fn values(loaded: Words) -> vec4<f32> {
    return bitcast<vec4<f32>>(words(loaded));
}

fn packed(given: vec4<f32>) -> Words {
    let bits = bitcast<vec4<u32>>(given);
    return vec2<u64>(u64(bits.x) | (u64(bits.y) << 32u), u64(bits.z) | (u64(bits.w) << 32u));
}

// Sums over the split's tokens for the groups of columns at `low` and `high`.
fn attend(lane: u32, span: Span, low: u32, high: u32) -> Columns {
    var sums: Columns;
    for (var start = span.first; start < span.end; start += 8u) {
        let token = start + lane;
        let place = place_of(span, token);
        var share: array<vec4<f32>, BLOCKS_AT_MOST>;
        for (var b = 0u; b < BLOCKS; b += 1u) {
            share[b] = values(scores[(token - span.first) * BLOCKS + b]);
        }
        {
            let at = subgroupBroadcast(place, 0u);
            let value = cached(cache[at + low]);
            let value2 = cached(cache[at + high]);
            for (var b = 0u; b < BLOCKS; b += 1u) {
                let of_token = subgroupBroadcast(share[b], 0u);
                sums.low[b] = add_token(sums.low[b], of_token, value);
                sums.high[b] = add_token(sums.high[b], of_token, value2);
            }
        }
        {
            let at = subgroupBroadcast(place, 1u);
            let value = cached(cache[at + low]);
            let value2 = cached(cache[at + high]);
            for (var b = 0u; b < BLOCKS; b += 1u) {
                let of_token = subgroupBroadcast(share[b], 1u);
                sums.low[b] = add_token(sums.low[b], of_token, value);
                sums.high[b] = add_token(sums.high[b], of_token, value2);
            }
        }
        {
            let at = subgroupBroadcast(place, 2u);
            let value = cached(cache[at + low]);
            let value2 = cached(cache[at + high]);
            for (var b = 0u; b < BLOCKS; b += 1u) {
                let of_token = subgroupBroadcast(share[b], 2u);
                sums.low[b] = add_token(sums.low[b], of_token, value);
                sums.high[b] = add_token(sums.high[b], of_token, value2);
            }
        }
        {
            let at = subgroupBroadcast(place, 3u);
            let value = cached(cache[at + low]);
            let value2 = cached(cache[at + high]);
            for (var b = 0u; b < BLOCKS; b += 1u) {
                let of_token = subgroupBroadcast(share[b], 3u);
                sums.low[b] = add_token(sums.low[b], of_token, value);
                sums.high[b] = add_token(sums.high[b], of_token, value2);
            }
        }
        {
            let at = subgroupBroadcast(place, 4u);
            let value = cached(cache[at + low]);
            let value2 = cached(cache[at + high]);
            for (var b = 0u; b < BLOCKS; b += 1u) {
                let of_token = subgroupBroadcast(share[b], 4u);
                sums.low[b] = add_token(sums.low[b], of_token, value);
                sums.high[b] = add_token(sums.high[b], of_token, value2);
            }
        }
        {
            let at = subgroupBroadcast(place, 5u);
            let value = cached(cache[at + low]);
            let value2 = cached(cache[at + high]);
            for (var b = 0u; b < BLOCKS; b += 1u) {
                let of_token = subgroupBroadcast(share[b], 5u);
                sums.low[b] = add_token(sums.low[b], of_token, value);
                sums.high[b] = add_token(sums.high[b], of_token, value2);
            }
        }
        {
            let at = subgroupBroadcast(place, 6u);
            let value = cached(cache[at + low]);
            let value2 = cached(cache[at + high]);
            for (var b = 0u; b < BLOCKS; b += 1u) {
                let of_token = subgroupBroadcast(share[b], 6u);
                sums.low[b] = add_token(sums.low[b], of_token, value);
                sums.high[b] = add_token(sums.high[b], of_token, value2);
            }
        }
        {
            let at = subgroupBroadcast(place, 7u);
            let value = cached(cache[at + low]);
            let value2 = cached(cache[at + high]);
            for (var b = 0u; b < BLOCKS; b += 1u) {
                let of_token = subgroupBroadcast(share[b], 7u);
                sums.low[b] = add_token(sums.low[b], of_token, value);
                sums.high[b] = add_token(sums.high[b], of_token, value2);
            }
        }
    }
    return sums;
}

fn add_token(sum: Heads, share: vec4<f32>, value: vec4<f32>) -> Heads {
    return Heads(
        fma(vec4<f32>(share.x), value, sum.a),
        fma(vec4<f32>(share.y), value, sum.b),
        fma(vec4<f32>(share.z), value, sum.c),
        fma(vec4<f32>(share.w), value, sum.d),
    );
}

fn sum_lanes(of_lane: vec4<f32>) -> vec4<f32> {
    var sum = subgroupBroadcast(of_lane, 0u);
    sum += subgroupBroadcast(of_lane, 1u);
    sum += subgroupBroadcast(of_lane, 2u);
    sum += subgroupBroadcast(of_lane, 3u);
    sum += subgroupBroadcast(of_lane, 4u);
    sum += subgroupBroadcast(of_lane, 5u);
    sum += subgroupBroadcast(of_lane, 6u);
    sum += subgroupBroadcast(of_lane, 7u);
    return sum;
}

fn store(sum: Heads, total: vec4<f32>, place: vec4<u32>) {
    y[place.x] = sum.a / total.x;
    y[place.y] = sum.b / total.y;
    y[place.z] = sum.c / total.z;
    y[place.w] = sum.d / total.w;
}

fn store_partial(sum: Heads, place: vec4<u32>) {
    partials[place.x] = sum.a;
    partials[place.y] = sum.b;
    partials[place.z] = sum.c;
    partials[place.w] = sum.d;
}
