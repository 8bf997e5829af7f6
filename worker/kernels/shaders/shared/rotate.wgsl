// Interleaved rotation of two pairs: turn = cos 0, sin 0, cos 1, sin 1.
fn rotate(value: vec4<f32>, turn: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        fma(value.x, turn.x, -(value.y * turn.y)),
        fma(value.x, turn.y, value.y * turn.x),
        fma(value.z, turn.z, -(value.w * turn.w)),
        fma(value.z, turn.w, value.w * turn.z),
    );
}
