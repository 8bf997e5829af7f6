// Philox 4x32 with 10 rounds (Salmon et al. 2011), and standard Gumbel noise from it. Twin: src/reference/sample.rs
fn multiply_high(a: u32, b: u32) -> u32 {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let low = a0 * b0;
    let middle = a1 * b0 + (low >> 16u);
    let other = a0 * b1 + (middle & 0xffffu);
    return a1 * b1 + (middle >> 16u) + (other >> 16u);
}

fn philox(start: vec4<u32>, start_key: vec2<u32>) -> vec4<u32> {
    var c = start;
    var key = start_key;
    for (var round = 0u; round < 10u; round += 1u) {
        let high0 = multiply_high(0xD2511F53u, c.x);
        let high1 = multiply_high(0xCD9E8D57u, c.z);
        c = vec4<u32>(high1 ^ c.y ^ key.x, 0xCD9E8D57u * c.z, high0 ^ c.w ^ key.y, 0xD2511F53u * c.x);
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

// -ln(-ln u), u = (bits + 0.5) / 2^23 exactly. Near 1, ln loses all digits: there -ln u is a series in 1 - u.
fn gumbel(bits: u32) -> f32 {
    let u = (f32(bits >> 9u) + 0.5) * 1.1920928955078125e-7;
    let v = 1.0 - u;
    var series = fma(v, 1.0 / 8.0, 1.0 / 7.0);
    series = fma(v, series, 1.0 / 6.0);
    series = fma(v, series, 1.0 / 5.0);
    series = fma(v, series, 1.0 / 4.0);
    series = fma(v, series, 1.0 / 3.0);
    series = fma(v, series, 1.0 / 2.0);
    series = fma(v, series, 1.0) * v;
    return -log(select(-log(u), series, v < 0.125));
}
