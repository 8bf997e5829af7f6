// Stored weights to f32, sixteen at a time. FP8: e4m3, one 16-byte load. Otherwise bfloat16, two loads.
// Needs of the including shader: nothing. Twin: src/reference/decode.rs
override FP8: bool = false;

struct Weights {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

// A bfloat16 is the upper half of an f32; the lower code of a word is the earlier column.
fn bf16x4(low: u32, high: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(low << 16u, low & 0xffff0000u, high << 16u, high & 0xffff0000u));
}

// e4m3: codes of 8 and more are normal, the exponent moves from bias 7 to 127; below they are multiples of 2^-9.
fn e4m3x4(word: u32) -> vec4<f32> {
    let codes = vec4<u32>(word, word >> 8u, word >> 16u, word >> 24u);
    let magnitude = codes & vec4<u32>(0x7fu);
    let normal = (magnitude << vec4<u32>(20u)) + vec4<u32>(120u << 23u);
    let small = bitcast<vec4<u32>>(vec4<f32>(magnitude) * 0.001953125);
    let bits = select(small, normal, magnitude >= vec4<u32>(8u));
    return bitcast<vec4<f32>>(bits | ((codes & vec4<u32>(0x80u)) << vec4<u32>(24u)));
}

fn decode_fp8(words: vec4<u32>) -> Weights {
    return Weights(e4m3x4(words.x), e4m3x4(words.y), e4m3x4(words.z), e4m3x4(words.w));
}

fn decode_bf16(first: vec4<u32>, second: vec4<u32>) -> Weights {
    return Weights(
        bf16x4(first.x, first.y),
        bf16x4(first.z, first.w),
        bf16x4(second.x, second.y),
        bf16x4(second.z, second.w),
    );
}
