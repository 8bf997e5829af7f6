// bfloat16, without scales: shared/weights.wgsl.
const SCALE_PER_ROW = false;
const HAS_MATRIX_SCALE = false;
const CODE_UNIT = 1.0;
alias Quads = vec2<u32>;

struct Chunk {
    first: Words,
    second: Words,
}

// A bfloat16 is the upper half of an f32; the lower code of a word is the earlier column.
fn bf16x4(low: u32, high: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(low << 16u, low & 0xffff0000u, high << 16u, high & 0xffff0000u));
}

fn decode(chunk: Chunk) -> Weights {
    let first = words(chunk.first);
    let second = words(chunk.second);
    return Weights(
        bf16x4(first.x, first.y),
        bf16x4(first.z, first.w),
        bf16x4(second.x, second.y),
        bf16x4(second.z, second.w),
    );
}

fn quads_at(quad: u32) -> u32 {
    return quad;
}

fn quad_of(loaded: Quads, quad: u32) -> vec4<f32> {
    return bf16x4(loaded.x, loaded.y);
}

fn row_scales(first: u32, row: u32) -> u32 {
    return first;
}

fn scale_at(row_scales: u32, chunk: u32) -> u32 {
    return row_scales;
}

fn scale_of(word: u32, row_scales: u32, chunk: u32) -> f32 {
    return 1.0;
}

fn matrix_scale(word: u32) -> f32 {
    return 1.0;
}
