// How memory is read: 16 bytes at a time, or 8.
alias Words = vec4<u32>;
alias HalfWords = vec2<u32>;

fn words(loaded: Words) -> vec4<u32> {
    return loaded;
}

fn half_words(loaded: HalfWords) -> vec2<u32> {
    return loaded;
}
