// Elements of tiled.wgsl as f32, weights with all their scales but the matrix's. Rows are a unit longer than they need: lanes
// that read neighbouring rows use different banks of the memory.
const HALVES = false;
const STEP_CHUNKS: u32 = 1u;
const STRIDE: u32 = 5u;
var<workgroup> row_tile: array<vec4<f32>, ROWS * STRIDE>;
var<workgroup> weight_tile: array<vec4<f32>, WIDTH * STRIDE>;

fn put_row(row: u32, quad: u32, value: vec4<f32>) {
    row_tile[row * STRIDE + quad] = value;
}

fn put_weights(column: u32, chunk: u32, codes: Weights, scale: f32) {
    let at = column * STRIDE + chunk * 4u;
    weight_tile[at] = codes.a * scale;
    weight_tile[at + 1u] = codes.b * scale;
    weight_tile[at + 2u] = codes.c * scale;
    weight_tile[at + 3u] = codes.d * scale;
}

fn row_quad(row: u32, quad: u32) -> vec4<f32> {
    return row_tile[row * STRIDE + quad];
}

fn weight_quad(column: u32, quad: u32) -> vec4<f32> {
    return weight_tile[column * STRIDE + quad];
}
