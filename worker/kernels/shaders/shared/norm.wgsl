// The scale of a root-mean-square norm: 1 / sqrt(mean(x^2) + eps). One workgroup per row: lane i takes every LANES-th
// group of 4 columns, four chains of fma, then lanes as a binary tree; the order depends on the width alone.
// Needs of the including shader: x, weight (two bfloat16 a word).
override LANES: u32 = 32;
var<workgroup> squares: array<f32, LANES>;

fn rms_scale(lane: u32, start: u32, quads: u32, eps: f32) -> f32 {
    var sum = vec4<f32>(0.0);
    for (var quad = lane; quad < quads; quad += LANES) {
        let value = x[start + quad];
        sum = fma(value, value, sum);
    }
    squares[lane] = (sum.x + sum.y) + (sum.z + sum.w);
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if (lane < step) {
            squares[lane] += squares[lane + step];
        }
    }
    workgroupBarrier();
    return 1.0 / sqrt(fma(squares[0], 1.0 / f32(quads * 4u), eps));
}

fn norm_weight(base: u32, quad: u32) -> vec4<f32> {
    let low = weight[base + quad * 2u];
    let high = weight[base + quad * 2u + 1u];
    return bitcast<vec4<f32>>(vec4<u32>(low << 16u, low & 0xffff0000u, high << 16u, high & 0xffff0000u));
}
