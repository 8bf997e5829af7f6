// NVFP4: e2m1 with an e4m3 scale per 16 columns and an f32 multiplier for all, which comes first: shared/weights.wgsl.
const SCALE_PER_ROW = true;
const HAS_MATRIX_SCALE = true;
const CODE_UNIT = E2M1_UNIT;
// Bytes before the scales.
const SCALES_START = 16u;
alias Chunk = HalfWords;
alias Quads = u32;

fn decode(chunk: Chunk) -> Weights {
    let codes = half_words(chunk);
    let first = e2m1x8(codes.x);
    let second = e2m1x8(codes.y);
    return Weights(first.low, first.high, second.low, second.high);
}

fn quads_at(quad: u32) -> u32 {
    return quad / 2u;
}

fn quad_of(loaded: Quads, quad: u32) -> vec4<f32> {
    return e2m1x8(loaded >> (quad % 2u * 16u)).low;
}

// In bytes: no binding has 2^32 of them.
fn row_scales(first: u32, row: u32) -> u32 {
    return first * 4u + SCALES_START + row * p.chunks;
}

fn scale_at(row_scales: u32, chunk: u32) -> u32 {
    return (row_scales + chunk) / 4u;
}

// An e4m3 scale; scales have no sign.
fn scale_of(word: u32, row_scales: u32, chunk: u32) -> f32 {
    let code = (word >> ((row_scales + chunk) % 4u * 8u)) & 0x7fu;
    let normal = bitcast<f32>((code << 20u) + (120u << 23u));
    return select(f32(code) * 0.001953125, normal, code >= 8u);
}

fn matrix_scale(word: u32) -> f32 {
    return bitcast<f32>(word) * E2M1_UNIT;
}
