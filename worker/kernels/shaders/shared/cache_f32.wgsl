// Cached values as they are computed: four in 16 bytes.
alias Cached = Words;

fn cached(loaded: Cached) -> vec4<f32> {
    return bitcast<vec4<f32>>(words(loaded));
}

fn to_cache(value: vec4<f32>) -> vec4<u32> {
    return bitcast<vec4<u32>>(value);
}
