// Sixteen columns of up to four rows of activations, for devices with subgroups of 8 lanes where a load costs as much as
// many sums: the lanes of a subgroup read the block together, 4 columns each, and hand it around.
// The first 4 lanes hold `low` of row 0 and `high` of row 2, the others of rows 1 and 3.
// Needs of the including shader: x, ROWS, dot16, and how memory is read.
fn values(loaded: Words) -> vec4<f32> {
    return bitcast<vec4<f32>>(words(loaded));
}

struct Block {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn load_block(lane: u32, at: vec4<u32>) -> Block {
    let quad = lane & 3u;
    if (ROWS == 1u) {
        return Block(values(x[at.x + quad]), vec4<f32>(0.0));
    }
    let is_second = (lane & 4u) != 0u;
    let low = values(x[select(at.x, at.y, is_second) + quad]);
    let high = values(x[select(at.z, at.w, is_second) + quad]);
    return Block(low, high);
}

fn dot16_first(w: Weights, half: vec4<f32>) -> f32 {
    let a = subgroupBroadcast(half, 0u);
    let b = subgroupBroadcast(half, 1u);
    let c = subgroupBroadcast(half, 2u);
    let d = subgroupBroadcast(half, 3u);
    return dot16(w, a, b, c, d);
}

fn dot16_second(w: Weights, half: vec4<f32>) -> f32 {
    let a = subgroupBroadcast(half, 4u);
    let b = subgroupBroadcast(half, 5u);
    let c = subgroupBroadcast(half, 6u);
    let d = subgroupBroadcast(half, 7u);
    return dot16(w, a, b, c, d);
}

fn dot16_rows(w: Weights, block: Block) -> vec4<f32> {
    if (ROWS == 1u) {
        return vec4<f32>(dot16_first(w, block.low), 0.0, 0.0, 0.0);
    }
    return vec4<f32>(
        dot16_first(w, block.low),
        dot16_second(w, block.low),
        dot16_first(w, block.high),
        dot16_second(w, block.high),
    );
}
