// linear: y[r, n] = sum_k w[n, k] x[r, k], or added to y. Also, with groups (workgroup z) as heads, the value half of
// latent attention: y[r, h, j] = sum_l w[h, j, l] x[r, h, l]; and, grouped by expert, the down half of routed experts.
// Workgroup: x = tile of rows, y = LANES_N x OUTPUTS outputs, z = group. Order of sums: shared/tile.wgsl.
// Twins: src/reference/linear.rs, values.rs, experts.rs
// Outputs of a lane, 1, 2 or 4: LANES_N apart.
override OUTPUTS: u32 = 1;
const MOST_OUTPUTS = 4;
@group(0) @binding(0) var<storage, read> x: array<Words>;
@group(0) @binding(1) var<storage, read> weights: array<Chunk>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
@group(0) @binding(3) var<storage, read> plan: array<u32>;
@group(0) @binding(4) var<storage, read> ids: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(LANES_K * LANES_N)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    var tile: Tile;
    if (GROUPED) {
        tile = grouped_tile(workgroup.x);
    } else {
        tile = plain_tile(workgroup.x);
    }
    if (tile.count == 0u) {
        return;
    }
    let first_input = p.in_first + workgroup.z * p.in_group;
    var at: array<vec4<u32>, 4>;
    for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
        at[i] = tile.inputs[i] * p.in_stride + vec4<u32>(first_input);
    }
    let first_index = workgroup.y * LANES_N * OUTPUTS + lane / LANES_K;
    let first_chunk = p.weight + tile.expert * p.record;
    let first_scale = p.scale + tile.expert * p.record_words;
    var weight: array<u32, MOST_OUTPUTS>;
    var of_row: array<u32, MOST_OUTPUTS>;
    for (var o = 0u; o < OUTPUTS; o += 1u) {
        let output = min(first_index + o * LANES_N, p.count - 1u) + workgroup.z * p.weight_group;
        weight[o] = first_chunk + output * p.chunks;
        of_row[o] = row_scales(first_scale, p.first + output);
    }
    // By output, and four rows each.
    var sums: array<array<vec4<f32>, 4>, MOST_OUTPUTS>;
    for (var run = lane % LANES_K * p.run; run < p.chunks; run += LANES_K * p.run) {
        var word: array<u32, MOST_OUTPUTS>;
        for (var o = 0u; o < OUTPUTS; o += 1u) {
            word[o] = scales[scale_at(of_row[o], run)];
        }
        for (var chunk = run; chunk < min(run + p.run, p.chunks); chunk += 1u) {
            var w: array<Weights, MOST_OUTPUTS>;
            for (var o = 0u; o < OUTPUTS; o += 1u) {
                w[o] = decode(weights[weight[o] + chunk]);
            }
            let rows0 = load_block(lane, at[0] + chunk * 4u);
            for (var o = 0u; o < OUTPUTS; o += 1u) {
                sums[o][0] = take(w[o], rows0, scale_of(word[o], of_row[o], chunk), sums[o][0]);
            }
            if (ROWS > 4u) {
                let rows1 = load_block(lane, at[1] + chunk * 4u);
                for (var o = 0u; o < OUTPUTS; o += 1u) {
                    sums[o][1] = take(w[o], rows1, scale_of(word[o], of_row[o], chunk), sums[o][1]);
                }
            }
            if (ROWS > 8u) {
                let rows2 = load_block(lane, at[2] + chunk * 4u);
                for (var o = 0u; o < OUTPUTS; o += 1u) {
                    sums[o][2] = take(w[o], rows2, scale_of(word[o], of_row[o], chunk), sums[o][2]);
                }
                let rows3 = load_block(lane, at[3] + chunk * 4u);
                for (var o = 0u; o < OUTPUTS; o += 1u) {
                    sums[o][3] = take(w[o], rows3, scale_of(word[o], of_row[o], chunk), sums[o][3]);
                }
            }
        }
    }
    var whole = 1.0;
    if (HAS_MATRIX_SCALE) {
        whole = matrix_scale(scales[first_scale]);
    }
    let first = p.out_first + workgroup.z * p.out_group;
    for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
        let place = tile.outputs[i] * p.out_stride + vec4<u32>(first);
        for (var o = 0u; o < OUTPUTS; o += 1u) {
            finish(lane, sums[o][i], whole, tile.count, i, place, first_index + o * LANES_N);
        }
    }
}

// One output of rows 4 i and those after it: what the lanes hold, added and stored.
fn finish(lane: u32, part: vec4<f32>, whole: f32, count: u32, i: u32, place: vec4<u32>, index: u32) {
    let value = add_lanes(lane, part) * whole;
    if (lane % LANES_K == 0u && index < p.count) {
        store_rows(count, i * 4u, place + vec4<u32>(index), value);
    }
}

// The rows of a tile from its row `start` on.
fn store_rows(count: u32, start: u32, place: vec4<u32>, value: vec4<f32>) {
    if (count > start) { store(place.x, value.x); }
    if (count > start + 1u) { store(place.y, value.y); }
    if (count > start + 2u) { store(place.z, value.z); }
    if (count > start + 3u) { store(place.w, value.w); }
}

fn store(place: u32, value: f32) {
    if (p.add == 1u) {
        y[place] += value;
    } else {
        y[place] = value;
    }
}
