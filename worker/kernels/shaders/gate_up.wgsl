// gate_up: h[r, j] = silu(w1[j] . x[r]) * (w3[j] . x[r]), silu(a) = a / (1 + exp(-a)). Grouped by expert: the first half
// of routed experts.
// Workgroup: x = tile of rows, y = LANES_N x OUTPUTS outputs. Order of sums: shared/tile.wgsl.
// Twins: src/reference/gate_up.rs, experts.rs
// Outputs of a lane, 1 or 2: LANES_N apart.
override OUTPUTS: u32 = 1;
const MOST_OUTPUTS = 2;
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
    var at: array<vec4<u32>, 4>;
    for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
        at[i] = tile.inputs[i] * p.in_stride;
    }
    let first_s1 = p.scale + tile.expert * p.record_words;
    let first_s3 = p.scale2 + tile.expert * p.record_words;
    var w1: array<u32, MOST_OUTPUTS>;
    var w3: array<u32, MOST_OUTPUTS>;
    var of_gate: array<u32, MOST_OUTPUTS>;
    var of_up: array<u32, MOST_OUTPUTS>;
    for (var o = 0u; o < OUTPUTS; o += 1u) {
        let row = min(first_index + o * LANES_N, p.count - 1u);
        w1[o] = p.weight + tile.expert * p.record + row * p.chunks;
        w3[o] = p.weight2 + tile.expert * p.record + row * p.chunks;
        of_gate[o] = row_scales(first_s1, p.first + row);
        of_up[o] = row_scales(first_s3, p.first + row);
    }
    // Sums of the two matrices by output, and four rows each.
    var gates: array<array<vec4<f32>, 4>, MOST_OUTPUTS>;
    var ups: array<array<vec4<f32>, 4>, MOST_OUTPUTS>;
    for (var run = lane % LANES_K * p.run; run < p.chunks; run += LANES_K * p.run) {
        var gate_word: array<u32, MOST_OUTPUTS>;
        var up_word: array<u32, MOST_OUTPUTS>;
        for (var o = 0u; o < OUTPUTS; o += 1u) {
            gate_word[o] = gate_scales[scale_at(of_gate[o], run)];
            up_word[o] = up_scales[scale_at(of_up[o], run)];
        }
        for (var chunk = run; chunk < min(run + p.run, p.chunks); chunk += 1u) {
            var g: array<Weights, MOST_OUTPUTS>;
            var u: array<Weights, MOST_OUTPUTS>;
            for (var o = 0u; o < OUTPUTS; o += 1u) {
                g[o] = decode(gate[w1[o] + chunk]);
                u[o] = decode(up[w3[o] + chunk]);
            }
            let rows0 = load_block(lane, at[0] + chunk * 4u);
            for (var o = 0u; o < OUTPUTS; o += 1u) {
                gates[o][0] = take(g[o], rows0, scale_of(gate_word[o], of_gate[o], chunk), gates[o][0]);
                ups[o][0] = take(u[o], rows0, scale_of(up_word[o], of_up[o], chunk), ups[o][0]);
            }
            if (ROWS > 4u) {
                let rows1 = load_block(lane, at[1] + chunk * 4u);
                for (var o = 0u; o < OUTPUTS; o += 1u) {
                    gates[o][1] = take(g[o], rows1, scale_of(gate_word[o], of_gate[o], chunk), gates[o][1]);
                    ups[o][1] = take(u[o], rows1, scale_of(up_word[o], of_up[o], chunk), ups[o][1]);
                }
            }
            if (ROWS > 8u) {
                let rows2 = load_block(lane, at[2] + chunk * 4u);
                for (var o = 0u; o < OUTPUTS; o += 1u) {
                    gates[o][2] = take(g[o], rows2, scale_of(gate_word[o], of_gate[o], chunk), gates[o][2]);
                    ups[o][2] = take(u[o], rows2, scale_of(up_word[o], of_up[o], chunk), ups[o][2]);
                }
                let rows3 = load_block(lane, at[3] + chunk * 4u);
                for (var o = 0u; o < OUTPUTS; o += 1u) {
                    gates[o][3] = take(g[o], rows3, scale_of(gate_word[o], of_gate[o], chunk), gates[o][3]);
                    ups[o][3] = take(u[o], rows3, scale_of(up_word[o], of_up[o], chunk), ups[o][3]);
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
        for (var o = 0u; o < OUTPUTS; o += 1u) {
            finish(lane, gates[o][i], ups[o][i], whole, tile.count, i, place, first_index + o * LANES_N);
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
