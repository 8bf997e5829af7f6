// Small floats to f32 without subnormal numbers, one by one: codes_half.wgsl says what each function gives.
const E4M3_UNIT = 1.0;
const E2M1_UNIT = 0.5;

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

// Codes of 8 and more are normal, the exponent moves from bias 7 to 127; below they are multiples of 2^-9.
fn e4m3x4(word: u32) -> vec4<f32> {
    let codes = vec4<u32>(word, word >> 8u, word >> 16u, word >> 24u);
    let magnitude = codes & vec4<u32>(0x7fu);
    let normal = (magnitude << vec4<u32>(20u)) + vec4<u32>(120u << 23u);
    let small = bitcast<vec4<u32>>(vec4<f32>(magnitude) * 0.001953125);
    let bits = select(small, normal, magnitude >= vec4<u32>(8u));
    return bitcast<vec4<f32>>(bits | ((codes & vec4<u32>(0x80u)) << vec4<u32>(24u)));
}

// The magnitudes 0, 1, 2, 3, 4, 6, 8, 12 by the lower three bits of a code; the fourth is the sign.
fn e2m1x4(word: u32) -> vec4<f32> {
    let codes = vec4<u32>(word, word >> 4u, word >> 8u, word >> 12u);
    let magnitude = (vec4<u32>(0xc8643210u) >> ((codes & vec4<u32>(7u)) << vec4<u32>(2u))) & vec4<u32>(15u);
    let sign = (codes & vec4<u32>(8u)) << vec4<u32>(28u);
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(vec4<f32>(magnitude)) | sign);
}

fn e2m1x8(word: u32) -> Eight {
    return Eight(e2m1x4(word), e2m1x4(word >> 16u));
}
