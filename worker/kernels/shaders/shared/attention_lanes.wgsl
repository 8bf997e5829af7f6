// What attention does with all lanes of a workgroup, whose heads, or rows of one head, come in fours. Whoever includes it has
// queries, a cache or what is like one, and place_of_key.
// Heads by fours, at most 4.
override BLOCKS: u32 = 4;
override TILE: u32 = 64;
// Groups of 4 columns of keys in workgroup memory at a time.
override CHUNK: u32 = 8;
// Lanes that score one block: LANES / BLOCKS.
override BLOCK_LANES: u32 = 32;

// Keys of a tile, padded; what lanes add up, at most four values of each.
var<workgroup> staged: array<vec4<f32>, TILE * (CHUNK + 1)>;
// Per block and token: shares of four heads.
var<workgroup> shares: array<vec4<f32>, TILE * BLOCKS>;
// Per block: what is kept of the sums so far; at the end the largest score and the sum of shares.
var<workgroup> kept: array<vec4<f32>, BLOCKS>;
var<workgroup> totals: array<vec4<f32>, BLOCKS>;

// Sums of four heads.
struct Heads {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// Four heads from `first` on. Those beyond the last repeat it, and store what it stores.
fn four(first: u32, last: u32) -> vec4<u32> {
    return min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
}

// Adds products of queries and keys in groups of four columns, of the tokens that this lane scores: the first and, where a
// tile has more of them than a block has lanes, the second. Keys begin at place_of_key(token, part), queries at `query`.
fn add_columns(
    start: array<vec4<f32>, 2>,
    lane: u32,
    query: vec4<u32>,
    part: u32,
    quads: u32,
) -> array<vec4<f32>, 2> {
    let token = (lane % BLOCK_LANES) % TILE;
    let token2 = (token + BLOCK_LANES) % TILE;
    var sum = start;
    for (var first = 0u; first < quads; first += CHUNK) {
        for (var i = lane; i < TILE * CHUNK; i += LANES) {
            let column = min(first + i % CHUNK, quads - 1u);
            staged[i / CHUNK * (CHUNK + 1u) + i % CHUNK] = cached(cache[place_of_key(i / CHUNK, part) + column]);
        }
        workgroupBarrier();
        for (var quad = 0u; quad < min(CHUNK, quads - first); quad += 1u) {
            let at = query + vec4<u32>(first + quad);
            let a = queries[at.x];
            let b = queries[at.y];
            let c = queries[at.z];
            let d = queries[at.w];
            sum[0] = add_key(staged[token * (CHUNK + 1u) + quad], a, b, c, d, sum[0]);
            if (TILE > BLOCK_LANES) {
                sum[1] = add_key(staged[token2 * (CHUNK + 1u) + quad], a, b, c, d, sum[1]);
            }
        }
        workgroupBarrier();
    }
    return sum;
}

// Scores of both tokens, twice the first's where there is no second.
fn scaled(sums: array<vec4<f32>, 2>) -> array<vec4<f32>, 2> {
    var scores: array<vec4<f32>, 2>;
    scores[0] = sums[0] * p.scale;
    scores[1] = select(scores[0], sums[1] * p.scale, vec4<bool>(TILE > BLOCK_LANES));
    return scores;
}

fn add_key(
    key: vec4<f32>,
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
    start: vec4<f32>,
) -> vec4<f32> {
    return vec4<f32>(add4(key, a, start.x), add4(key, b, start.y), add4(key, c, start.z), add4(key, d, start.w));
}

fn add4(a: vec4<f32>, b: vec4<f32>, start: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, start))));
}

fn add_token(sum: Heads, share: vec4<f32>, value: vec4<f32>) -> Heads {
    return Heads(
        fma(vec4<f32>(share.x), value, sum.a),
        fma(vec4<f32>(share.y), value, sum.b),
        fma(vec4<f32>(share.z), value, sum.c),
        fma(vec4<f32>(share.w), value, sum.d),
    );
}

// The largest of what the lanes of a block hold.
fn block_max(lane: u32, value: vec4<f32>) -> vec4<f32> {
    staged[lane] = value;
    for (var step = BLOCK_LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if (lane % BLOCK_LANES < step) {
            staged[lane] = max(staged[lane], staged[lane + step]);
        }
    }
    workgroupBarrier();
    return staged[lane / BLOCK_LANES * BLOCK_LANES];
}

// The sum of what the lanes of a block hold.
fn block_sum(lane: u32, value: vec4<f32>) -> vec4<f32> {
    staged[lane] = value;
    for (var step = BLOCK_LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if (lane % BLOCK_LANES < step) {
            staged[lane] += staged[lane + step];
        }
    }
    workgroupBarrier();
    return staged[lane / BLOCK_LANES * BLOCK_LANES];
}

// Adds what the lanes of the same columns hold, in order; right in the first of them.
fn add_parts(lane: u32, mine: Heads) -> Heads {
    if (p.value * 2u > LANES) {
        return mine;
    }
    workgroupBarrier();
    staged[lane] = mine.a;
    staged[LANES + lane] = mine.b;
    staged[2u * LANES + lane] = mine.c;
    staged[3u * LANES + lane] = mine.d;
    workgroupBarrier();
    var sum = mine;
    for (var part = 1u; part < LANES / p.value; part += 1u) {
        let place = part * p.value + lane % p.value;
        sum.a += staged[place];
        sum.b += staged[LANES + place];
        sum.c += staged[2u * LANES + place];
        sum.d += staged[3u * LANES + place];
    }
    return sum;
}
