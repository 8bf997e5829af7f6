// Stored weights to f32. A file per format says how: weights_bf16.wgsl, weights_fp8.wgsl, weights_nvfp4.wgsl. Each has
//   Chunk, decode: 16 columns of a row as stored, and their values;
//   Quads, quads_at, quad_of: what 4 columns lie in, which one that is, and their values;
//   row_scales: where a row's scales are; scale_at, scale_of: the word that has a chunk's, and its value;
//   SCALE_PER_ROW: whether no two rows share one;
//   CODE_UNIT: what a decoded code is to be multiplied with to be what it stands for: the multiplier of FP8, and
//     NVFP4's of the matrix, have it in them;
//   HAS_MATRIX_SCALE, matrix_scale: whether sums are multiplied in the end, and with what, from the first word of the scales.
// Values times scales are exact; so is every decoding here.
// Needs of the including shader: loads_u32.wgsl or loads_u64.wgsl; codes_half.wgsl or codes_float.wgsl; p.chunks, p.scale_stride, p.scale_step.
// Twin: src/reference/decode.rs
struct Weights {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}
