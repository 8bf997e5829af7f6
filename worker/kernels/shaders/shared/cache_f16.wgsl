// Cached values as f16: four in 8 bytes.
alias Cached = HalfWords;

fn cached(loaded: Cached) -> vec4<f32> {
    let pairs = half_words(loaded);
    return vec4<f32>(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
}

// To the nearest, of two to the even one, and never beyond the largest number. Bit by bit, so that every device rounds alike:
// drivers may round pack2x16float as they please.
fn to_cache(value: vec4<f32>) -> vec2<u32> {
    let bits = bitcast<vec4<u32>>(value);
    let size = bits & vec4<u32>(0x7fffffffu);
    // Rounded at the 13 bits of the mantissa that are left out, and the exponent's offset changed from 127 to 15.
    let odd = (size >> vec4<u32>(13u)) & vec4<u32>(1u);
    let normal = (size + odd + vec4<u32>(0xfffu) - vec4<u32>(0x38000000u)) >> vec4<u32>(13u);
    // A number below 2^-14 counts 2^-24s, which are the units of f32 from 0.5 on.
    let small = bitcast<vec4<u32>>(abs(value) + vec4<f32>(0.5)) - vec4<u32>(0x3f000000u);
    let code = min(select(normal, small, size < vec4<u32>(0x38800000u)), vec4<u32>(0x7bffu));
    let halves = code | ((bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u));
    return halves.xz | (halves.yw << vec2<u32>(16u));
}
