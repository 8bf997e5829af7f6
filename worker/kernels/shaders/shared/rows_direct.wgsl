// Sixteen columns of up to four rows of activations, each lane reading them itself.
// Needs of the including shader: x, ROWS, dot16, and how memory is read.
fn values(loaded: Words) -> vec4<f32> {
    return bitcast<vec4<f32>>(words(loaded));
}

struct Block {
    at: vec4<u32>,
}

fn load_block(lane: u32, at: vec4<u32>) -> Block {
    return Block(at);
}

fn dot16_row(w: Weights, at: u32) -> f32 {
    return dot16(w, values(x[at]), values(x[at + 1u]), values(x[at + 2u]), values(x[at + 3u]));
}

fn dot16_rows(w: Weights, block: Block) -> vec4<f32> {
    let at = block.at;
    if (ROWS == 1u) {
        return vec4<f32>(dot16_row(w, at.x), 0.0, 0.0, 0.0);
    }
    return vec4<f32>(dot16_row(w, at.x), dot16_row(w, at.y), dot16_row(w, at.z), dot16_row(w, at.w));
}
