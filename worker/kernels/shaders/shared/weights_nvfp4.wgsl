// NVFP4: e2m1 with an e4m3 scale per 16 columns and an f32 multiplier for all, which comes first: shared/weights.wgsl.
// Codes are decoded to twice their value and scales to half of theirs, so that codes are small whole numbers.
const SCALE_PER_ROW = true;
const HAS_MATRIX_SCALE = true;
// Bytes before the scales.
const SCALES_START = 16u;
alias Chunk = HalfWords;
alias Quads = u32;

// The magnitudes 0, 1, 2, 3, 4, 6, 8, 12 by the lower three bits of a code; the fourth is the sign. The lowest code is the
// earliest column.
fn e2m1x4(word: u32) -> vec4<f32> {
    let codes = vec4<u32>(word, word >> 4u, word >> 8u, word >> 12u);
    let magnitude = (vec4<u32>(0xc8643210u) >> ((codes & vec4<u32>(7u)) << vec4<u32>(2u))) & vec4<u32>(15u);
    let sign = (codes & vec4<u32>(8u)) << vec4<u32>(28u);
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(vec4<f32>(magnitude)) | sign);
}

fn decode(chunk: Chunk) -> Weights {
    let codes = half_words(chunk);
    return Weights(e2m1x4(codes.x), e2m1x4(codes.x >> 16u), e2m1x4(codes.y), e2m1x4(codes.y >> 16u));
}

fn quads_at(quad: u32) -> u32 {
    return quad / 2u;
}

fn quad_of(loaded: Quads, quad: u32) -> vec4<f32> {
    return e2m1x4(loaded >> (quad % 2u * 16u));
}

// In bytes: no binding has 2^32 of them.
fn row_scales(first: u32, row: u32) -> u32 {
    return first * 4u + SCALES_START + row * p.chunks;
}

fn scale_at(row_scales: u32, chunk: u32) -> u32 {
    return (row_scales + chunk) / 4u;
}

// Half of an e4m3 scale, as in e4m3x4; scales have no sign.
fn scale_of(word: u32, row_scales: u32, chunk: u32) -> f32 {
    let code = (word >> ((row_scales + chunk) % 4u * 8u)) & 0x7fu;
    let normal = bitcast<f32>((code << 20u) + (119u << 23u));
    return select(f32(code) * 0.0009765625, normal, code >= 8u);
}

fn matrix_scale(word: u32) -> f32 {
    return bitcast<f32>(word);
}
