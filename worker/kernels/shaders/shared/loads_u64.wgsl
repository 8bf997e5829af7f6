// How memory is read where a load of 8 bytes costs what one of 4 does: 16 bytes at a time, or 8.
alias Words = vec2<u64>;
alias HalfWords = u64;

fn words(loaded: Words) -> vec4<u32> {
    let high = loaded >> vec2<u32>(32u);
    return vec4<u32>(u32(loaded.x), u32(high.x), u32(loaded.y), u32(high.y));
}

fn half_words(loaded: HalfWords) -> vec2<u32> {
    return vec2<u32>(u32(loaded), u32(loaded >> 32u));
}
