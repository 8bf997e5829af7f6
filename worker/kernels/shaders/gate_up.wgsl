// gate_up: h[r, j] = silu(w1[j] . x[r]) * (w3[j] . x[r]), silu(a) = a / (1 + exp(-a)). Grouped by expert: the first half
// of routed experts.
// Workgroup: x = tile of rows, y = LANES_N x OUTPUTS outputs. Order of sums: shared/tile.wgsl.
// Twins: src/reference/gate_up.rs, experts.rs
// Outputs of a lane, 1 or 2: LANES_N apart.
override OUTPUTS: u32 = 1;
@group(0) @binding(0) var<storage, read> x: array<Words>;
@group(0) @binding(1) var<storage, read> gate: array<Chunk>;
@group(0) @binding(2) var<storage, read> up: array<Chunk>;
@group(0) @binding(3) var<storage, read> gate_scales: array<u32>;
@group(0) @binding(4) var<storage, read> up_scales: array<u32>;
@group(0) @binding(5) var<storage, read> plan: array<u32>;
@group(0) @binding(6) var<storage, read> ids: array<u32>;
@group(0) @binding(7) var<storage, read_write> h: array<f32>;

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
    let first_index = workgroup.y * LANES_N * OUTPUTS + lane / LANES_K;
    let indices = vec2<u32>(first_index, first_index + LANES_N);
    let rows = min(indices, vec2<u32>(p.count - 1u));
    var at: array<vec4<u32>, 4>;
    for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
        at[i] = tile.inputs[i] * p.in_stride;
    }
    let w1 = vec2<u32>(p.weight + tile.expert * p.record) + rows * p.chunks;
    let w3 = vec2<u32>(p.weight2 + tile.expert * p.record) + rows * p.chunks;
    let first_s1 = p.scale + tile.expert * p.record_words;
    let first_s3 = p.scale2 + tile.expert * p.record_words;
    let gate_scales0 = row_scales(first_s1, p.first + rows.x);
    let gate_scales1 = row_scales(first_s1, p.first + rows.y);
    let up_scales0 = row_scales(first_s3, p.first + rows.x);
    let up_scales1 = row_scales(first_s3, p.first + rows.y);
    // Of the two matrices, by output, and four rows each.
    var gate0: array<vec4<f32>, 4>;
    var gate1: array<vec4<f32>, 4>;
    var up0: array<vec4<f32>, 4>;
    var up1: array<vec4<f32>, 4>;
    for (var run = lane % LANES_K * p.run; run < p.chunks; run += LANES_K * p.run) {
        let gate_word0 = gate_scales[scale_at(gate_scales0, run)];
        let up_word0 = up_scales[scale_at(up_scales0, run)];
        var gate_word1 = gate_word0;
        var up_word1 = up_word0;
        if (OUTPUTS > 1u) {
            gate_word1 = gate_scales[scale_at(gate_scales1, run)];
            up_word1 = up_scales[scale_at(up_scales1, run)];
        }
        for (var chunk = run; chunk < min(run + p.run, p.chunks); chunk += 1u) {
            let g0 = decode(gate[w1.x + chunk]);
            let u0 = decode(up[w3.x + chunk]);
            var g1 = g0;
            var u1 = u0;
            if (OUTPUTS > 1u) {
                g1 = decode(gate[w1.y + chunk]);
                u1 = decode(up[w3.y + chunk]);
            }
            let gate_scale0 = scale_of(gate_word0, gate_scales0, chunk);
            let gate_scale1 = scale_of(gate_word1, gate_scales1, chunk);
            let up_scale0 = scale_of(up_word0, up_scales0, chunk);
            let up_scale1 = scale_of(up_word1, up_scales1, chunk);
            let rows0 = load_block(lane, at[0] + chunk * 4u);
            gate0[0] = take(g0, rows0, gate_scale0, gate0[0]);
            up0[0] = take(u0, rows0, up_scale0, up0[0]);
            if (OUTPUTS > 1u) {
                gate1[0] = take(g1, rows0, gate_scale1, gate1[0]);
                up1[0] = take(u1, rows0, up_scale1, up1[0]);
            }
            if (ROWS > 4u) {
                let rows1 = load_block(lane, at[1] + chunk * 4u);
                gate0[1] = take(g0, rows1, gate_scale0, gate0[1]);
                up0[1] = take(u0, rows1, up_scale0, up0[1]);
                if (OUTPUTS > 1u) {
                    gate1[1] = take(g1, rows1, gate_scale1, gate1[1]);
                    up1[1] = take(u1, rows1, up_scale1, up1[1]);
                }
            }
            if (ROWS > 8u) {
                let rows2 = load_block(lane, at[2] + chunk * 4u);
                gate0[2] = take(g0, rows2, gate_scale0, gate0[2]);
                up0[2] = take(u0, rows2, up_scale0, up0[2]);
                if (OUTPUTS > 1u) {
                    gate1[2] = take(g1, rows2, gate_scale1, gate1[2]);
                    up1[2] = take(u1, rows2, up_scale1, up1[2]);
                }
                let rows3 = load_block(lane, at[3] + chunk * 4u);
                gate0[3] = take(g0, rows3, gate_scale0, gate0[3]);
                up0[3] = take(u0, rows3, up_scale0, up0[3]);
                if (OUTPUTS > 1u) {
                    gate1[3] = take(g1, rows3, gate_scale1, gate1[3]);
                    up1[3] = take(u1, rows3, up_scale1, up1[3]);
                }
            }
        }
    }
    // Of the two matrices.
    var whole = vec2<f32>(1.0);
    if (HAS_MATRIX_SCALE) {
        whole = vec2<f32>(matrix_scale(gate_scales[first_s1]), matrix_scale(up_scales[first_s3]));
    }
    for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
        let place = tile.outputs[i] * p.out_stride + vec4<u32>(p.out_first);
        finish(lane, gate0[i], up0[i], whole, tile.count, i, place, indices.x);
        if (OUTPUTS > 1u) {
            finish(lane, gate1[i], up1[i], whole, tile.count, i, place, indices.y);
        }
    }
}

// One output of rows 4 i and those after it: what the lanes hold, added, gated and stored.
fn finish(lane: u32, gate_part: vec4<f32>, up_part: vec4<f32>, whole: vec2<f32>, count: u32, i: u32, place: vec4<u32>, index: u32) {
    let gated = add_lanes(lane, gate_part) * whole.x;
    let value = gated / (vec4<f32>(1.0) + exp(-gated)) * (add_lanes(lane, up_part) * whole.y);
    let at = place + vec4<u32>(index);
    if (lane % LANES_K == 0u && index < p.count) {
        if (count > i * 4u) { h[at.x] = value.x; }
        if (count > i * 4u + 1u) { h[at.y] = value.y; }
        if (count > i * 4u + 2u) { h[at.z] = value.z; }
        if (count > i * 4u + 3u) { h[at.w] = value.w; }
    }
}
