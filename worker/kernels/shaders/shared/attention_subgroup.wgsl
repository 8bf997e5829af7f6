// What attention does in subgroups of 8 lanes, whose heads, or rows of one head, come in fours. Whoever includes it has
// queries, a cache or what is like one, and place_of.
// Heads by fours, at most 4.
override BLOCKS: u32 = 1;
// Tokens of a split: p.split.
override SPLIT: u32 = 512;
const BLOCKS_AT_MOST: u32 = 4;

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

// The split's tokens, and where they are: for place_of.
struct Span {
    first: u32,
    end: u32,
    base: u32,
}

// Of two tokens, eight apart.
struct Scores {
    even: array<vec4<f32>, BLOCKS_AT_MOST>,
    odd: array<vec4<f32>, BLOCKS_AT_MOST>,
}

// Four heads from `first` on. Those beyond the last repeat it, and store what it stores.
fn four(first: u32, last: u32) -> vec4<u32> {
    return min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
}

// Adds products of queries and keys in groups of four columns, of the two tokens whose keys begin at `places`; queries begin
// at `first` after query[b]. Groups come in twos, because widths are multiples of 16.
fn add_columns(
    start: Scores,
    query: array<u32, BLOCKS_AT_MOST>,
    first: u32,
    places: vec2<u32>,
    quads: u32,
) -> Scores {
    var sums = start;
    for (var quad = 0u; quad < quads; quad += 2u) {
        let key = cached(cache[places.x + quad]);
        let next = cached(cache[places.x + quad + 1u]);
        let key2 = cached(cache[places.y + quad]);
        let next2 = cached(cache[places.y + quad + 1u]);
        for (var b = 0u; b < BLOCKS; b += 1u) {
            let part = values(queries[query[b] + first + quad]);
            let lower = four_heads(part);
            let upper = four_more(part);
            sums.even[b] = add_key(next, upper, add_key(key, lower, sums.even[b]));
            sums.odd[b] = add_key(next2, upper, add_key(key2, lower, sums.odd[b]));
        }
    }
    return sums;
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
