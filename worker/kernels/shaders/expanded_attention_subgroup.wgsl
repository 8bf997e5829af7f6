// expanded_attention, as expanded_attention.wgsl, in the manner of attention_subgroup.wgsl: a workgroup is one subgroup, and
// rows of one head stand where heads of one row do there. Nothing depends on other rows.
// Workgroup: x = head, y = up to 4 BLOCKS rows (shared/expanded.wgsl). Twin: src/reference/expanded_attention.rs
override LANES: u32 = 8;
@group(0) @binding(0) var<storage, read> queries: array<Words>;
@group(0) @binding(1) var<storage, read> cache: array<Cached>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> state: array<vec4<f32>>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = workgroup.x;
    let first = workgroup.y * 4u * BLOCKS;
    let last_position = p.first_position + min(first + 4u * BLOCKS, p.rows) - 1u;
    if (last_position < p.first_token) {
        return;
    }
    let span = Span(0u, min(p.tokens, last_position - p.first_token + 1u), head);
    var known: array<Before, BLOCKS_AT_MOST>;
    var total: array<vec4<f32>, BLOCKS_AT_MOST>;
    var largest = score(lane, span, head, first);
    for (var b = 0u; b < BLOCKS; b += 1u) {
        known[b] = before(four(first + b * 4u, p.rows - 1u), head);
        largest[b] = max(known[b].largest, subgroupMax(largest[b]));
    }
    for (var start = 0u; start < span.end; start += 8u) {
        let token = start + lane;
        for (var b = 0u; b < BLOCKS; b += 1u) {
            let place = token * BLOCKS + b;
            let share = exp(values(scores[place]) - largest[b]);
            let counted = select(vec4<f32>(0.0), share, seen(token, first + b * 4u));
            scores[place] = packed(counted);
            total[b] += counted;
        }
    }
    for (var b = 0u; b < BLOCKS; b += 1u) {
        let fade = exp(known[b].largest - largest[b]);
        let all = fma(known[b].total, fade, sum_lanes(total[b]));
        total[b] = all;
        if (lane == 0u) {
            let row = first + b * 4u;
            keep(row, head, largest[b].x, all.x);
            keep(row + 1u, head, largest[b].y, all.y);
            keep(row + 2u, head, largest[b].z, all.z);
            keep(row + 3u, head, largest[b].w, all.w);
        }
        // From here on what is kept of the sums before.
        known[b].largest = fade;
    }
    for (var start = 0u; start < p.value; start += 16u) {
        let quad = start + lane;
        let sums = attend(lane, span, p.nope + min(quad, p.value - 1u), p.nope + min(quad + 8u, p.value - 1u));
        for (var b = 0u; b < BLOCKS; b += 1u) {
            store(sums.low[b], known[b].largest, total[b], first + b * 4u, head, quad);
            store(sums.high[b], known[b].largest, total[b], first + b * 4u, head, quad + 8u);
        }
    }
}

// Which of four rows see a token of the tile.
fn seen(token: u32, first_row: u32) -> vec4<bool> {
    let rows = vec4<u32>(first_row) + vec4<u32>(0u, 1u, 2u, 3u);
    return vec4<u32>(p.first_token + token) <= rows + p.first_position;
}

// Where a token's key of the head begins, its value after it; tokens beyond the last repeat it.
fn place_of(span: Span, any_token: u32) -> u32 {
    let token = min(any_token, span.end - 1u);
    return (token * p.heads + span.base) * (p.nope + p.value);
}

// The same of the key's rotated part.
fn place_of_rope(span: Span, any_token: u32) -> u32 {
    return p.first_rope + min(any_token, span.end - 1u) * p.rope;
}

// Scores of this lane's tokens, to workgroup memory; gives the largest of those that rows see.
fn score(lane: u32, span: Span, head: u32, first_row: u32) -> array<vec4<f32>, BLOCKS_AT_MOST> {
    var largest: array<vec4<f32>, BLOCKS_AT_MOST>;
    // Of the queries that this lane reads: row lane % 4 of a block, at even or odd groups of columns.
    var query: array<u32, BLOCKS_AT_MOST>;
    for (var b = 0u; b < BLOCKS; b += 1u) {
        let row = min(first_row + b * 4u + (lane & 3u), p.rows - 1u);
        query[b] = ((p.first_row + row) * p.heads + head) * (p.nope + p.rope) + (lane >> 2u);
        largest[b] = vec4<f32>(LOWEST);
    }
    for (var token = lane; token - lane < span.end; token += 16u) {
        let keys = vec2<u32>(place_of(span, token), place_of(span, token + 8u));
        let turned = vec2<u32>(place_of_rope(span, token), place_of_rope(span, token + 8u));
        var sums: Scores;
        sums = add_columns(sums, query, 0u, keys, p.nope);
        sums = add_columns(sums, query, p.nope, turned, p.rope);
        for (var b = 0u; b < BLOCKS; b += 1u) {
            let place = token * BLOCKS + b;
            let scaled = sums.even[b] * p.scale;
            let scaled2 = sums.odd[b] * p.scale;
            scores[place] = packed(scaled);
            scores[place + 8u * BLOCKS] = packed(scaled2);
            let lowest = vec4<f32>(LOWEST);
            let one = select(lowest, scaled, seen(token, first_row + b * 4u));
            let two = select(lowest, scaled2, seen(token + 8u, first_row + b * 4u));
            largest[b] = max(largest[b], max(one, two));
        }
    }
    return largest;
}

// Of four rows.
fn store(sum: Heads, fade: vec4<f32>, total: vec4<f32>, row: u32, head: u32, quad: u32) {
    merge(row, head, quad, sum.a, fade.x, total.x);
    merge(row + 1u, head, quad, sum.b, fade.y, total.y);
    merge(row + 2u, head, quad, sum.c, fade.z, total.z);
    merge(row + 3u, head, quad, sum.d, fade.w, total.w);
}
