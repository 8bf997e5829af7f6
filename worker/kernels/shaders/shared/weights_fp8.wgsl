// e4m3 with an f32 multiplier per 128 x 128 block, or with one for all (strides of 0): shared/weights.wgsl.
const SCALE_PER_ROW = false;
const HAS_MATRIX_SCALE = false;
const CODE_UNIT = E4M3_UNIT;
alias Chunk = Words;
alias Quads = u32;

fn decode(chunk: Chunk) -> Weights {
    let codes = words(chunk);
    return Weights(e4m3x4(codes.x), e4m3x4(codes.y), e4m3x4(codes.z), e4m3x4(codes.w));
}

fn quads_at(quad: u32) -> u32 {
    return quad;
}

fn quad_of(loaded: Quads, quad: u32) -> vec4<f32> {
    return e4m3x4(loaded);
}

fn row_scales(first: u32, row: u32) -> u32 {
    return first + row / 128u * p.scale_stride;
}

fn scale_at(row_scales: u32, chunk: u32) -> u32 {
    return row_scales + chunk / 8u * p.scale_step;
}

fn scale_of(word: u32, row_scales: u32, chunk: u32) -> f32 {
    return bitcast<f32>(word) * E4M3_UNIT;
}

fn matrix_scale(word: u32) -> f32 {
    return 1.0;
}
