// linear: y[r, n] = sum_k w[n, k] x[r, k], or added to y. Also, with groups (workgroup z) as heads, the value half of
// latent attention: y[r, h, j] = sum_l w[h, j, l] x[r, h, l]; and, grouped by expert, the down half of routed experts.
// Workgroup: x = tile of rows, y = LANES_N x OUTPUTS outputs, z = group. Order of sums: shared/tile.wgsl.
// Twins: src/reference/linear.rs, values.rs, experts.rs
// Outputs of a lane, 1, 2 or 4: LANES_N apart.
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
    let first_input = p.in_first + workgroup.z * p.in_group;
    var at: array<vec4<u32>, 4>;
    for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
        at[i] = tile.inputs[i] * p.in_stride + vec4<u32>(first_input);
    }
    let first_index = workgroup.y * LANES_N * OUTPUTS + lane / LANES_K;
    let indices = vec4<u32>(first_index) + vec4<u32>(0u, 1u, 2u, 3u) * LANES_N;
    let outputs = vec4<u32>(workgroup.z * p.weight_group) + min(indices, vec4<u32>(p.count - 1u));
    let weight = vec4<u32>(p.weight + tile.expert * p.record) + outputs * p.chunks;
    let first_scale = p.scale + tile.expert * p.record_words;
    let scales0 = row_scales(first_scale, p.first + outputs.x);
    let scales1 = row_scales(first_scale, p.first + outputs.y);
    let scales2 = row_scales(first_scale, p.first + outputs.z);
    let scales3 = row_scales(first_scale, p.first + outputs.w);
    // By output, and four rows each.
    var sum0: array<vec4<f32>, 4>;
    var sum1: array<vec4<f32>, 4>;
    var sum2: array<vec4<f32>, 4>;
    var sum3: array<vec4<f32>, 4>;
    for (var run = lane % LANES_K * p.run; run < p.chunks; run += LANES_K * p.run) {
        let word0 = scales[scale_at(scales0, run)];
        var word1 = word0;
        var word2 = word0;
        var word3 = word0;
        if (OUTPUTS > 1u) { word1 = scales[scale_at(scales1, run)]; }
        if (OUTPUTS > 2u) {
            word2 = scales[scale_at(scales2, run)];
            word3 = scales[scale_at(scales3, run)];
        }
        for (var chunk = run; chunk < min(run + p.run, p.chunks); chunk += 1u) {
            let w0 = decode(weights[weight.x + chunk]);
            let scale0 = scale_of(word0, scales0, chunk);
            var w1 = w0;
            var w2 = w0;
            var w3 = w0;
            if (OUTPUTS > 1u) { w1 = decode(weights[weight.y + chunk]); }
            if (OUTPUTS > 2u) {
                w2 = decode(weights[weight.z + chunk]);
                w3 = decode(weights[weight.w + chunk]);
            }
            let scale1 = scale_of(word1, scales1, chunk);
            let scale2 = scale_of(word2, scales2, chunk);
            let scale3 = scale_of(word3, scales3, chunk);
            let rows0 = load_block(lane, at[0] + chunk * 4u);
            sum0[0] = take(w0, rows0, scale0, sum0[0]);
            if (OUTPUTS > 1u) { sum1[0] = take(w1, rows0, scale1, sum1[0]); }
            if (OUTPUTS > 2u) {
                sum2[0] = take(w2, rows0, scale2, sum2[0]);
                sum3[0] = take(w3, rows0, scale3, sum3[0]);
            }
            if (ROWS > 4u) {
                let rows1 = load_block(lane, at[1] + chunk * 4u);
                sum0[1] = take(w0, rows1, scale0, sum0[1]);
                if (OUTPUTS > 1u) { sum1[1] = take(w1, rows1, scale1, sum1[1]); }
                if (OUTPUTS > 2u) {
                    sum2[1] = take(w2, rows1, scale2, sum2[1]);
                    sum3[1] = take(w3, rows1, scale3, sum3[1]);
                }
            }
            if (ROWS > 8u) {
                let rows2 = load_block(lane, at[2] + chunk * 4u);
                sum0[2] = take(w0, rows2, scale0, sum0[2]);
                if (OUTPUTS > 1u) { sum1[2] = take(w1, rows2, scale1, sum1[2]); }
                if (OUTPUTS > 2u) {
                    sum2[2] = take(w2, rows2, scale2, sum2[2]);
                    sum3[2] = take(w3, rows2, scale3, sum3[2]);
                }
                let rows3 = load_block(lane, at[3] + chunk * 4u);
                sum0[3] = take(w0, rows3, scale0, sum0[3]);
                if (OUTPUTS > 1u) { sum1[3] = take(w1, rows3, scale1, sum1[3]); }
                if (OUTPUTS > 2u) {
                    sum2[3] = take(w2, rows3, scale2, sum2[3]);
                    sum3[3] = take(w3, rows3, scale3, sum3[3]);
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
        finish(lane, sum0[i], whole, tile.count, i, place, indices.x);
        if (OUTPUTS > 1u) { finish(lane, sum1[i], whole, tile.count, i, place, indices.y); }
        if (OUTPUTS > 2u) {
            finish(lane, sum2[i], whole, tile.count, i, place, indices.z);
            finish(lane, sum3[i], whole, tile.count, i, place, indices.w);
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
