// expanded_attention: as attention.wgsl, over a tile of the context whose keys and values are expanded, for rows of one
// sequence: y[r, h] = sum_t softmax_t(scale * q[r, h] . key[t, h]) * value[t, h], t <= position[r].
// Workgroup: x = head, y = up to 4 BLOCKS rows (shared/expanded.wgsl). TILE tokens at a time, merged in order with a running
// maximum. A row's sums take the tokens in one order; tokens that it does not see have no share.
// Twin: src/reference/expanded_attention.rs
override LANES: u32 = 128;
@group(0) @binding(0) var<storage, read> queries: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> cache: array<Cached>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> state: array<vec4<f32>>;

// The head, and the first and last token of those that are scored together.
var<private> head: u32;
var<private> tile_first: u32;
var<private> tile_last: u32;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    head = workgroup.x;
    let first = workgroup.y * 4u * BLOCKS;
    let last_position = p.first_position + min(first + 4u * BLOCKS, p.rows) - 1u;
    if (last_position < p.first_token) {
        return;
    }
    let end = min(p.tokens, last_position - p.first_token + 1u);
    let block = lane / BLOCK_LANES;
    let rows = four(first + block * 4u, p.rows - 1u);
    let positions = rows + p.first_position;
    let query = ((rows + p.first_row) * p.heads + head) * (p.nope + p.rope);
    // Lanes that take the same columns, each other tokens.
    let parts = LANES / p.value;
    let part = lane / p.value;
    let quad = lane % p.value;
    let known = before(rows, head);
    var sums: array<Heads, 4>;
    var largest = known.largest;
    var total = vec4<f32>(0.0);
    for (var start = 0u; start < end; start += TILE) {
        let count = min(TILE, end - start);
        tile_first = start;
        tile_last = end - 1u;
        var mine: array<vec4<f32>, 2>;
        mine = add_columns(mine, lane, query, 0u, p.nope);
        mine = scaled(add_columns(mine, lane, query + p.nope, 1u, p.rope));
        var seen: array<vec4<bool>, 2>;
        for (var k = 0u; k < 2u; k += 1u) {
            let token = start + lane % BLOCK_LANES + k * BLOCK_LANES;
            seen[k] = vec4<u32>(p.first_token + token) <= positions & vec4<bool>(token < end);
        }
        let lowest = vec4<f32>(LOWEST);
        let mine_seen = max(select(lowest, mine[0], seen[0]), select(lowest, mine[1], seen[1]));
        let highest = max(largest, block_max(lane, mine_seen));
        let fading = exp(largest - highest);
        largest = highest;
        total *= fading;
        for (var k = 0u; k < 2u; k += 1u) {
            let token = lane % BLOCK_LANES + k * BLOCK_LANES;
            if (token < TILE) {
                let share = select(vec4<f32>(0.0), exp(mine[k] - highest), seen[k]);
                shares[block * TILE + token] = share;
                total += share;
            }
        }
        if (lane % BLOCK_LANES == 0u) {
            kept[block] = fading;
        }
        workgroupBarrier();
        if (part < parts) {
            for (var b = 0u; b < BLOCKS; b += 1u) {
                let sum = sums[b];
                let fade = kept[b];
                sums[b] = Heads(sum.a * fade.x, sum.b * fade.y, sum.c * fade.z, sum.d * fade.w);
            }
            for (var t = part; t < count; t += parts) {
                let value = cached(cache[place_of_token(start + t) + p.nope + quad]);
                for (var b = 0u; b < BLOCKS; b += 1u) {
                    sums[b] = add_token(sums[b], shares[b * TILE + t], value);
                }
            }
        }
        workgroupBarrier();
    }
    total = block_sum(lane, total);
    if (lane % BLOCK_LANES == 0u) {
        let fade = exp(known.largest - largest);
        let all = fma(known.total, fade, total);
        totals[block] = all;
        kept[block] = fade;
        let row = first + block * 4u;
        keep(row, head, largest.x, all.x);
        keep(row + 1u, head, largest.y, all.y);
        keep(row + 2u, head, largest.z, all.z);
        keep(row + 3u, head, largest.w, all.w);
    }
    workgroupBarrier();
    for (var b = 0u; b < BLOCKS; b += 1u) {
        let sum = add_parts(lane, sums[b]);
        if (lane < p.value) {
            let row = first + b * 4u;
            merge(row, head, quad, sum.a, kept[b].x, totals[b].x);
            merge(row + 1u, head, quad, sum.b, kept[b].y, totals[b].y);
            merge(row + 2u, head, quad, sum.c, kept[b].z, totals[b].z);
            merge(row + 3u, head, quad, sum.d, kept[b].w, totals[b].w);
        }
    }
}

// Where a token's key of the head begins, its value after it.
fn place_of_token(token: u32) -> u32 {
    return (token * p.heads + head) * (p.nope + p.value);
}

// Where the first part of the key of a token of the tile begins, or the rotated second.
fn place_of_key(of_tile: u32, part: u32) -> u32 {
    let token = min(tile_first + of_tile, tile_last);
    return select(p.first_rope + token * p.rope, place_of_token(token), part == 0u);
}
