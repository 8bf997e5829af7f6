// Small floats to f32 by way of f16, two at a time: a code's sign, exponent and mantissa are put where f16 has them, and what
// is missing to the value is a power of two for all codes, subnormal ones too. For devices that keep f16's subnormal
// numbers, which is tried when one is opened (src/gpu/halves.rs).
// E4M3_UNIT, E2M1_UNIT: what decoded values are to be multiplied with.
const E4M3_UNIT = 256.0;
const E2M1_UNIT = 16384.0;

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

// The lowest byte is the earliest column.
fn e4m3x4(word: u32) -> vec4<f32> {
    let odd = unpack2x16float((word & 0x80008000u) | ((word & 0x7f007f00u) >> 1u));
    let left = word << 8u;
    let even = unpack2x16float((left & 0x80008000u) | ((left & 0x7f007f00u) >> 1u));
    return vec4<f32>(even.x, odd.x, even.y, odd.y);
}

// Codes 0 and 4 of eight.
fn e2m1x2(word: u32) -> vec2<f32> {
    return unpack2x16float(((word << 12u) & 0x80008000u) | ((word << 9u) & 0x0e000e00u));
}

// The lowest code is the earliest column.
fn e2m1x8(word: u32) -> Eight {
    let a = e2m1x2(word);
    let b = e2m1x2(word >> 4u);
    let c = e2m1x2(word >> 8u);
    let d = e2m1x2(word >> 12u);
    return Eight(vec4<f32>(a.x, b.x, c.x, d.x), vec4<f32>(a.y, b.y, c.y, d.y));
}
