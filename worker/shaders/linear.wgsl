// linear: y[r, n] = sum_k w[n, k] x[r, k], or added to y. Also, with groups (workgroup z) as heads, the value half of
// latent attention: y[r, h, j] = sum_l w[h, j, l] x[r, h, l]; and, grouped by expert, the down half of routed experts.
// Workgroup: x = tile of rows, y = LANES_N outputs, z = group. Order of sums: shared/tile.wgsl.
// Twins: src/reference/linear.rs, values.rs, experts.rs
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
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
    let index = workgroup.y * LANES_N + lane / LANES_K;
    let row = workgroup.z * p.weight_group + min(index, p.count - 1u);
    let at = tile.inputs * p.in_stride + (p.in_first + workgroup.z * p.in_group);
    var sum = vec4<f32>(0.0);
    if (FP8) {
        let weight = p.weight + tile.expert * p.record + row * p.chunks;
        let scale = p.scale + tile.expert * p.record * 4u + (p.first + row) / 128u * ((p.chunks + 7u) / 8u);
        for (var chunk = lane % LANES_K; chunk < p.chunks; chunk += LANES_K) {
            let part = dot16_rows(decode_fp8(weights[weight + chunk]), at + chunk * 4u);
            sum = fma(part, vec4<f32>(scales[scale + chunk / 8u]), sum);
        }
    } else {
        let weight = p.weight + tile.expert * p.record + row * p.chunks * 2u;
        for (var chunk = lane % LANES_K; chunk < p.chunks; chunk += LANES_K) {
            let place = weight + chunk * 2u;
            sum += dot16_rows(decode_bf16(weights[place], weights[place + 1u]), at + chunk * 4u);
        }
    }
    sum = add_lanes(lane, sum);
    if (lane % LANES_K == 0u && index < p.count) {
        let place = tile.outputs * p.out_stride + (p.out_first + workgroup.z * p.out_group + index);
        store(place.x, sum.x);
        if (tile.count > 1u) { store(place.y, sum.y); }
        if (tile.count > 2u) { store(place.z, sum.z); }
        if (tile.count > 3u) { store(place.w, sum.w); }
    }
}

fn store(place: u32, value: f32) {
    if (p.add == 1u) {
        y[place] += value;
    } else {
        y[place] = value;
    }
}
