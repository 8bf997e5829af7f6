// attention, as attention.wgsl, for devices with subgroups of 8 lanes where a load costs as much as many sums, and barriers
// are dear: a workgroup is one subgroup. y[r, h] = sum_t softmax_t(scale * q[r, h] . key[t, k]) * value[t, k].
// Workgroup: x = up to 4 BLOCKS heads that share keys and values, y = row, z = split (shared/attention.wgsl).
// A lane scores every eighth token of the split, for all heads; lanes read the queries together and hand them around. Then
// a lane sums over the split's tokens for two groups of columns of all heads at a time, in registers; lanes hand around
// where tokens are and their shares. Nothing depends on other rows. How values are cached: shared/cache_*.wgsl.
// Twin: src/reference/attention.rs
override LANES: u32 = 8;
@group(0) @binding(0) var<storage, read> queries: array<Words>;
@group(0) @binding(1) var<storage, read> meta_rows: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> tables: array<u32>;
@group(0) @binding(3) var<storage, read> cache: array<Cached>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> partials: array<vec4<f32>>;

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

// Where a token's row of the cache begins; tokens beyond the last repeat it.
fn place_of(span: Span, any_token: u32) -> u32 {
    let token = min(any_token, span.end - 1u);
    let block = min(tables[span.base + (token >> p.block_bits)], p.blocks - 1u);
    return ((block << p.block_bits) + (token & ((1u << p.block_bits) - 1u))) * p.width;
}

// Scores of this lane's tokens, to workgroup memory; gives the largest of them.
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
        var sums: Scores;
        sums = add_columns(sums, query, 0u, vec2<u32>(place, place2), p.key);
        for (var b = 0u; b < BLOCKS; b += 1u) {
            let place = (token - span.first) * BLOCKS + b;
            let scaled = sums.even[b] * p.scale;
            let scaled2 = sums.odd[b] * p.scale;
            scores[place] = packed(scaled);
            scores[place + 8u * BLOCKS] = packed(scaled2);
            largest[b] = max(largest[b], max(scaled, scaled2));
        }
    }
    return largest;
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
