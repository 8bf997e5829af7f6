// linear: y[r, n] = sum_k w[n, k] x[r, k], or added to y. Also, with groups (workgroup z) as heads, the value half of
// latent attention: y[r, h, j] = sum_l w[h, j, l] x[r, h, l]; and, grouped by expert, the down half of routed experts.
// Workgroup: x = tile of rows, y = LANES_N x OUTPUTS outputs, z = group. Order of sums: shared/tile.wgsl.
// Twins: src/reference/linear.rs, values.rs, experts.rs
// Outputs of a lane, 1 or 2: LANES_N apart.
override OUTPUTS: u32 = 1;
@group(0) @binding(0) var<storage, read> x: array<Words>;
@group(0) @binding(1) var<storage, read> weights: array<Words>;
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
    let index = workgroup.y * LANES_N * OUTPUTS + lane / LANES_K;
    let index2 = index + LANES_N;
    let row = workgroup.z * p.weight_group + min(index, p.count - 1u);
    let row2 = workgroup.z * p.weight_group + min(index2, p.count - 1u);
    let at = tile.inputs * p.in_stride + (p.in_first + workgroup.z * p.in_group);
    var sum = vec4<f32>(0.0);
    var sum2 = vec4<f32>(0.0);
    let record = tile.expert * p.record;
    if (FP8) {
        let weight = p.weight + record + row * p.chunks;
        let weight2 = p.weight + record + row2 * p.chunks;
        let blocks = (p.chunks + 7u) / 8u;
        let scale = p.scale + record * 4u + (p.first + row) / 128u * blocks;
        let scale2 = p.scale + record * 4u + (p.first + row2) / 128u * blocks;
        for (var chunk = lane % LANES_K; chunk < p.chunks; chunk += LANES_K) {
            let rows = load_block(lane, at + chunk * 4u);
            let part = dot16_rows(decode_fp8(words(weights[weight + chunk])), rows);
            sum = fma(part, vec4<f32>(scales[scale + chunk / 8u]), sum);
            if (OUTPUTS > 1u) {
                let part2 = dot16_rows(decode_fp8(words(weights[weight2 + chunk])), rows);
                sum2 = fma(part2, vec4<f32>(scales[scale2 + chunk / 8u]), sum2);
            }
        }
    } else {
        let weight = p.weight + record + row * p.chunks * 2u;
        let weight2 = p.weight + record + row2 * p.chunks * 2u;
        for (var chunk = lane % LANES_K; chunk < p.chunks; chunk += LANES_K) {
            let rows = load_block(lane, at + chunk * 4u);
            let c = weight + chunk * 2u;
            sum += dot16_rows(decode_bf16(words(weights[c]), words(weights[c + 1u])), rows);
            if (OUTPUTS > 1u) {
                let c2 = weight2 + chunk * 2u;
                sum2 += dot16_rows(decode_bf16(words(weights[c2]), words(weights[c2 + 1u])), rows);
            }
        }
    }
    let first = p.out_first + workgroup.z * p.out_group;
    sum = add_lanes(lane, sum);
    if (lane % LANES_K == 0u && index < p.count) {
        store_rows(tile.count, tile.outputs * p.out_stride + (first + index), sum);
    }
    if (OUTPUTS > 1u) {
        sum2 = add_lanes(lane, sum2);
        if (lane % LANES_K == 0u && index2 < p.count) {
            store_rows(tile.count, tile.outputs * p.out_stride + (first + index2), sum2);
        }
    }
}

fn store_rows(count: u32, place: vec4<u32>, value: vec4<f32>) {
    store(place.x, value.x);
    if (count > 1u) { store(place.y, value.y); }
    if (count > 2u) { store(place.z, value.z); }
    if (count > 3u) { store(place.w, value.w); }
}

fn store(place: u32, value: f32) {
    if (p.add == 1u) {
        y[place] += value;
    } else {
        y[place] = value;
    }
}
