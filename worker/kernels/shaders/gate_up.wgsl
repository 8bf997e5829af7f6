// gate_up: h[r, j] = silu(w1[j] . x[r]) * (w3[j] . x[r]), silu(a) = a / (1 + exp(-a)). Grouped by expert: the first half
// of routed experts.
// Workgroup: x = tile of rows, y = LANES_N outputs. Order of sums: shared/tile.wgsl.
// Twins: src/reference/gate_up.rs, experts.rs
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
    let index = workgroup.y * LANES_N + lane / LANES_K;
    let row = min(index, p.count - 1u);
    var at: array<vec4<u32>, 4>;
    for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
        at[i] = tile.inputs[i] * p.in_stride;
    }
    let w1 = p.weight + tile.expert * p.record + row * p.chunks;
    let w3 = p.weight2 + tile.expert * p.record + row * p.chunks;
    let first_s1 = p.scale + tile.expert * p.record_words;
    let first_s3 = p.scale2 + tile.expert * p.record_words;
    let s1 = row_scales(first_s1, p.first + row);
    let s3 = row_scales(first_s3, p.first + row);
    var a: array<vec4<f32>, 4>;
    var b: array<vec4<f32>, 4>;
    for (var run = lane % LANES_K; run < p.chunks; run += LANES_K * RUN) {
        let gate_scale = scale_of(gate_scales[scale_at(s1, run)], s1, run);
        let up_scale = scale_of(up_scales[scale_at(s3, run)], s3, run);
        for (var chunk = run; chunk < min(run + RUN, p.chunks); chunk += 1u) {
            let gate_weights = decode(gate[w1 + chunk]);
            let up_weights = decode(up[w3 + chunk]);
            let rows0 = load_block(lane, at[0] + chunk * 4u);
            a[0] = fma(dot16_rows(gate_weights, rows0), vec4<f32>(gate_scale), a[0]);
            b[0] = fma(dot16_rows(up_weights, rows0), vec4<f32>(up_scale), b[0]);
            if (ROWS > 4u) {
                let rows1 = load_block(lane, at[1] + chunk * 4u);
                a[1] = fma(dot16_rows(gate_weights, rows1), vec4<f32>(gate_scale), a[1]);
                b[1] = fma(dot16_rows(up_weights, rows1), vec4<f32>(up_scale), b[1]);
            }
            if (ROWS > 8u) {
                let rows2 = load_block(lane, at[2] + chunk * 4u);
                a[2] = fma(dot16_rows(gate_weights, rows2), vec4<f32>(gate_scale), a[2]);
                b[2] = fma(dot16_rows(up_weights, rows2), vec4<f32>(up_scale), b[2]);
                let rows3 = load_block(lane, at[3] + chunk * 4u);
                a[3] = fma(dot16_rows(gate_weights, rows3), vec4<f32>(gate_scale), a[3]);
                b[3] = fma(dot16_rows(up_weights, rows3), vec4<f32>(up_scale), b[3]);
            }
        }
    }
    var gate_whole = 1.0;
    var up_whole = 1.0;
    if (HAS_MATRIX_SCALE) {
        gate_whole = matrix_scale(gate_scales[first_s1]);
        up_whole = matrix_scale(up_scales[first_s3]);
    }
    for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
        let gated = add_lanes(lane, a[i]) * gate_whole;
        let value = gated / (vec4<f32>(1.0) + exp(-gated)) * (add_lanes(lane, b[i]) * up_whole);
        let place = tile.outputs[i] * p.out_stride + vec4<u32>(p.out_first + index);
        if (lane % LANES_K == 0u && index < p.count) {
            if (tile.count > i * 4u) { h[place.x] = value.x; }
            if (tile.count > i * 4u + 1u) { h[place.y] = value.y; }
            if (tile.count > i * 4u + 2u) { h[place.z] = value.z; }
            if (tile.count > i * 4u + 3u) { h[place.w] = value.w; }
        }
    }
}
