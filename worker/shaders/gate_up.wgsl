// gate_up: h[r, j] = silu(w1[j] . x[r]) * (w3[j] . x[r]), silu(a) = a / (1 + exp(-a)). Grouped by expert: the first half
// of routed experts.
// Workgroup: x = tile of rows, y = LANES_N outputs. Order of sums: shared/tile.wgsl.
// Twins: src/reference/gate_up.rs, experts.rs
@group(0) @binding(0) var<storage, read> x: array<Words>;
@group(0) @binding(1) var<storage, read> gate: array<Words>;
@group(0) @binding(2) var<storage, read> up: array<Words>;
@group(0) @binding(3) var<storage, read> gate_scales: array<f32>;
@group(0) @binding(4) var<storage, read> up_scales: array<f32>;
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
    let at = tile.inputs * p.in_stride;
    let record = tile.expert * p.record;
    var a = vec4<f32>(0.0);
    var b = vec4<f32>(0.0);
    if (FP8) {
        let w1 = p.weight + record + row * p.chunks;
        let w3 = p.weight2 + record + row * p.chunks;
        let block = record * 4u + (p.first + row) / 128u * ((p.chunks + 7u) / 8u);
        for (var chunk = lane % LANES_K; chunk < p.chunks; chunk += LANES_K) {
            let rows = load_block(lane, at + chunk * 4u);
            let scale = block + chunk / 8u;
            let part1 = dot16_rows(decode_fp8(words(gate[w1 + chunk])), rows);
            a = fma(part1, vec4<f32>(gate_scales[p.scale + scale]), a);
            let part3 = dot16_rows(decode_fp8(words(up[w3 + chunk])), rows);
            b = fma(part3, vec4<f32>(up_scales[p.scale2 + scale]), b);
        }
    } else {
        let w1 = p.weight + record + row * p.chunks * 2u;
        let w3 = p.weight2 + record + row * p.chunks * 2u;
        for (var chunk = lane % LANES_K; chunk < p.chunks; chunk += LANES_K) {
            let rows = load_block(lane, at + chunk * 4u);
            let c = chunk * 2u;
            a += dot16_rows(decode_bf16(words(gate[w1 + c]), words(gate[w1 + c + 1u])), rows);
            b += dot16_rows(decode_bf16(words(up[w3 + c]), words(up[w3 + c + 1u])), rows);
        }
    }
    a = add_lanes(lane, a);
    b = add_lanes(lane, b);
    if (lane % LANES_K == 0u && index < p.count) {
        let value = a / (vec4<f32>(1.0) + exp(-a)) * b;
        let place = tile.outputs * p.out_stride + (p.out_first + index);
        h[place.x] = value.x;
        if (tile.count > 1u) { h[place.y] = value.y; }
        if (tile.count > 2u) { h[place.z] = value.z; }
        if (tile.count > 3u) { h[place.w] = value.w; }
    }
}
