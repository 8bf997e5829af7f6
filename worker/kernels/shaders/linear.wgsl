// linear: y[r, n] = sum_k w[n, k] x[r, k], or added to y. Also, with groups (workgroup z) as heads, the value half of
// latent attention: y[r, h, j] = sum_l w[h, j, l] x[r, h, l]; and, grouped by expert, the down half of routed experts.
// Workgroup: x = tile of rows, y = LANES_N x OUTPUTS outputs, z = group. Order of sums: shared/tile.wgsl.
// Twins: src/reference/linear.rs, values.rs, experts.rs
// Outputs of a lane, 1 or 2: LANES_N apart.
override OUTPUTS: u32 = 1;
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
    let index = workgroup.y * LANES_N * OUTPUTS + lane / LANES_K;
    let index2 = index + LANES_N;
    let row = workgroup.z * p.weight_group + min(index, p.count - 1u);
    let row2 = workgroup.z * p.weight_group + min(index2, p.count - 1u);
    let first_input = p.in_first + workgroup.z * p.in_group;
    var at: array<vec4<u32>, 4>;
    for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
        at[i] = tile.inputs[i] * p.in_stride + vec4<u32>(first_input);
    }
    var sum: array<vec4<f32>, 4>;
    var sum2: array<vec4<f32>, 4>;
    let weight = p.weight + tile.expert * p.record + row * p.chunks;
    let weight2 = p.weight + tile.expert * p.record + row2 * p.chunks;
    let first_scale = p.scale + tile.expert * p.record_words;
    let row_scales1 = row_scales(first_scale, p.first + row);
    let row_scales2 = row_scales(first_scale, p.first + row2);
    for (var run = lane % LANES_K; run < p.chunks; run += LANES_K * RUN) {
        let scale = scale_of(scales[scale_at(row_scales1, run)], row_scales1, run);
        var scale2 = scale;
        if (OUTPUTS > 1u) {
            scale2 = scale_of(scales[scale_at(row_scales2, run)], row_scales2, run);
        }
        for (var chunk = run; chunk < min(run + RUN, p.chunks); chunk += 1u) {
            let w = decode(weights[weight + chunk]);
            var w2 = w;
            if (OUTPUTS > 1u) {
                w2 = decode(weights[weight2 + chunk]);
            }
            let rows0 = load_block(lane, at[0] + chunk * 4u);
            sum[0] = fma(dot16_rows(w, rows0), vec4<f32>(scale), sum[0]);
            if (OUTPUTS > 1u) {
                sum2[0] = fma(dot16_rows(w2, rows0), vec4<f32>(scale2), sum2[0]);
            }
            if (ROWS > 4u) {
                let rows1 = load_block(lane, at[1] + chunk * 4u);
                sum[1] = fma(dot16_rows(w, rows1), vec4<f32>(scale), sum[1]);
                if (OUTPUTS > 1u) {
                    sum2[1] = fma(dot16_rows(w2, rows1), vec4<f32>(scale2), sum2[1]);
                }
            }
            if (ROWS > 8u) {
                let rows2 = load_block(lane, at[2] + chunk * 4u);
                sum[2] = fma(dot16_rows(w, rows2), vec4<f32>(scale), sum[2]);
                if (OUTPUTS > 1u) {
                    sum2[2] = fma(dot16_rows(w2, rows2), vec4<f32>(scale2), sum2[2]);
                }
                let rows3 = load_block(lane, at[3] + chunk * 4u);
                sum[3] = fma(dot16_rows(w, rows3), vec4<f32>(scale), sum[3]);
                if (OUTPUTS > 1u) {
                    sum2[3] = fma(dot16_rows(w2, rows3), vec4<f32>(scale2), sum2[3]);
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
        let value = add_lanes(lane, sum[i]) * whole;
        if (lane % LANES_K == 0u && index < p.count) {
            store_rows(tile.count, i * 4u, place + vec4<u32>(index), value);
        }
        if (OUTPUTS > 1u) {
            let value2 = add_lanes(lane, sum2[i]) * whole;
            if (lane % LANES_K == 0u && index2 < p.count) {
                store_rows(tile.count, i * 4u, place + vec4<u32>(index2), value2);
            }
        }
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
