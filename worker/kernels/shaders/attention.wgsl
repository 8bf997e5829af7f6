// attention: y[r, h] = sum_t softmax_t(scale * q[r, h] . key[t, k]) * value[t, k], t <= position[r], k the keys and values
// of head h. Workgroup: x = up to 4 BLOCKS heads that share them, y = row, z = split (shared/attention.wgsl).
// Tiles of TILE tokens at multiples of TILE, merged in order with a running maximum. Keys pass through workgroup memory:
// the lanes of a block score four heads, each lane for some tokens. Then a lane sums over the tile's tokens for four
// columns of all heads; where lanes are left they share the tokens, and are added at the end. Nothing depends on other rows.
// How values are cached: shared/cache_*.wgsl. Twin: src/reference/attention.rs
override LANES: u32 = 128;
@group(0) @binding(0) var<storage, read> queries: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> meta_rows: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> tables: array<u32>;
@group(0) @binding(3) var<storage, read> cache: array<Cached>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> partials: array<vec4<f32>>;

// Where a token's row of the cache begins.
var<workgroup> places: array<u32, TILE>;
// Where the keys of this workgroup's heads begin in it.
var<private> first_key: u32;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = p.first_row + workgroup.y;
    let info = meta_rows[row];
    let tokens = tokens_of(info);
    let first = workgroup.z * p.split;
    if (first >= tokens) {
        return;
    }
    let end = min(first + p.split, tokens);
    let table = min(info.z, p.table_rows - 1u) * p.table_width;
    let tile_index = p.first_tile + workgroup.x;
    let shared_head = tile_index / p.tiles;
    let last_head = (shared_head + 1u) * p.group - 1u;
    let first_head = shared_head * p.group + tile_index % p.tiles * 4u * BLOCKS;
    first_key = shared_head * p.key;
    let first_value = p.first_value + shared_head * p.value;
    let block = lane / BLOCK_LANES;
    let query = (four(first_head + block * 4u, last_head) + row * p.heads) * p.key;
    // Lanes that take the same columns, each other tokens.
    let parts = LANES / p.value;
    let part = lane / p.value;
    let quad = lane % p.value;
    var sums: array<Heads, 4>;
    var largest = vec4<f32>(LOWEST);
    var total = vec4<f32>(0.0);
    for (var start = first; start < end; start += TILE) {
        let count = min(TILE, end - start);
        if (lane < TILE) {
            let token = start + min(lane, count - 1u);
            let slot = min(tables[table + (token >> p.block_bits)], p.blocks - 1u);
            places[lane] = ((slot << p.block_bits) + (token & ((1u << p.block_bits) - 1u))) * p.width;
        }
        workgroupBarrier();
        let mine = score(lane, query);
        let highest = max(largest, block_max(lane, max(mine[0], mine[1])));
        let fading = exp(largest - highest);
        largest = highest;
        total *= fading;
        for (var k = 0u; k < 2u; k += 1u) {
            let token = lane % BLOCK_LANES + k * BLOCK_LANES;
            if (token < TILE) {
                let share = select(vec4<f32>(0.0), exp(mine[k] - highest), vec4<bool>(token < count));
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
                let value = cached(cache[places[t] + first_value + quad]);
                for (var b = 0u; b < BLOCKS; b += 1u) {
                    sums[b] = add_token(sums[b], shares[b * TILE + t], value);
                }
            }
        }
        workgroupBarrier();
    }
    total = block_sum(lane, total);
    if (lane % BLOCK_LANES == 0u) {
        totals[block] = total;
        kept[block] = largest;
    }
    workgroupBarrier();
    for (var b = 0u; b < BLOCKS; b += 1u) {
        let sum = add_parts(lane, sums[b]);
        let heads = four(first_head + b * 4u, last_head);
        if (lane < p.value && tokens <= p.split) {
            let place = (heads + row * p.heads) * p.value + quad;
            let divisor = totals[b];
            y[place.x] = sum.a / divisor.x;
            y[place.y] = sum.b / divisor.y;
            y[place.z] = sum.c / divisor.z;
            y[place.w] = sum.d / divisor.w;
        } else if (lane < p.value) {
            store_partial(workgroup, heads.x, quad, sum.a, kept[b].x, totals[b].x);
            store_partial(workgroup, heads.y, quad, sum.b, kept[b].y, totals[b].y);
            store_partial(workgroup, heads.z, quad, sum.c, kept[b].z, totals[b].z);
            store_partial(workgroup, heads.w, quad, sum.d, kept[b].w, totals[b].w);
        }
    }
}

fn store_partial(workgroup: vec3<u32>, head: u32, quad: u32, sum: vec4<f32>, largest: f32, total: f32) {
    let place = partial_place(workgroup.y, workgroup.z, head);
    partials[place + quad] = sum;
    if (quad == 0u) {
        partials[place + p.value] = vec4<f32>(largest, total, 0.0, 0.0);
    }
}

// Of the tokens that this lane scores, the first and, where a tile has more of them than a block has lanes, the second.
fn score(lane: u32, query: vec4<u32>) -> array<vec4<f32>, 2> {
    var sums: array<vec4<f32>, 2>;
    sums = add_columns(sums, lane, query, 0u, p.key);
    return scaled(sums);
}

// Where the key of a token of the tile begins.
fn place_of_key(token: u32, part: u32) -> u32 {
    return places[token] + first_key;
}
