// Elements of tiled.wgsl as f16, in twos. Weights are exact: an e4m3 code has 4 significant bits and lies within 2^-9 and 448,
// the product of an e2m1 code and its e4m3 scale has 6 and lies within 2^-10 and 2688. Rows are rounded to 11 bits, after a
// power of two that makes their largest number one of 2^14 to 2^15 (row_factors.wgsl).
// Rows of a tile are 80 bytes long: a multiple of 16, and those that are read together use different banks of the memory.
const HALVES = true;
const STEP_CHUNKS: u32 = 2u;
const STRIDE: u32 = 20u;
var<workgroup> row_tile: array<vec2<f16>, ROWS * STRIDE>;
var<workgroup> weight_tile: array<vec2<f16>, WIDTH * STRIDE>;

fn put_row(row: u32, quad: u32, value: vec4<f32>) {
    let at = row * STRIDE + quad * 2u;
    row_tile[at] = vec2<f16>(value.xy);
    row_tile[at + 1u] = vec2<f16>(value.zw);
}

fn put_weight_quad(at: u32, value: vec4<f32>) {
    weight_tile[at] = vec2<f16>(value.xy);
    weight_tile[at + 1u] = vec2<f16>(value.zw);
}

fn put_weights(column: u32, chunk: u32, codes: Weights, scale: f32) {
    let at = column * STRIDE + chunk * 8u;
    put_weight_quad(at, codes.a * scale);
    put_weight_quad(at + 2u, codes.b * scale);
    put_weight_quad(at + 4u, codes.c * scale);
    put_weight_quad(at + 6u, codes.d * scale);
}

fn row_quad(row: u32, quad: u32) -> vec4<f32> {
    let at = row * STRIDE + quad * 2u;
    return vec4<f32>(vec2<f32>(row_tile[at]), vec2<f32>(row_tile[at + 1u]));
}

fn weight_quad(column: u32, quad: u32) -> vec4<f32> {
    let at = column * STRIDE + quad * 2u;
    return vec4<f32>(vec2<f32>(weight_tile[at]), vec2<f32>(weight_tile[at + 1u]));
}
