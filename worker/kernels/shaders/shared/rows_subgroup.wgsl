// Sixteen columns of up to four rows of activations, for devices with subgroups of 8 lanes where a load costs as much as
// many sums: the lanes of a subgroup read the block together, and hand it around. Of one row each lane reads two columns; of
// four, the first 4 lanes hold four columns of row 0 in `low` and of row 2 in `high`, the others of rows 1 and 3.
// Needs of the including shader: x, ROWS, dot16, and how memory is read.
fn values(loaded: Words) -> vec4<f32> {
    return bitcast<vec4<f32>>(words(loaded));
}

struct Block {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn load_block(lane: u32, at: vec4<u32>) -> Block {
    if (ROWS == 1u) {
        let two = half_words(x[at.x + (lane >> 1u)][lane & 1u]);
        return Block(vec4<f32>(bitcast<vec2<f32>>(two), 0.0, 0.0), vec4<f32>(0.0));
    }
    let quad = lane & 3u;
    let is_second = (lane & 4u) != 0u;
    let low = values(x[select(at.x, at.y, is_second) + quad]);
    let high = values(x[select(at.z, at.w, is_second) + quad]);
    return Block(low, high);
}

// Of two columns a lane.
fn dot16_only(w: Weights, two: vec2<f32>) -> f32 {
    let a = vec4<f32>(subgroupBroadcast(two, 0u), subgroupBroadcast(two, 1u));
    let b = vec4<f32>(subgroupBroadcast(two, 2u), subgroupBroadcast(two, 3u));
    let c = vec4<f32>(subgroupBroadcast(two, 4u), subgroupBroadcast(two, 5u));
    let d = vec4<f32>(subgroupBroadcast(two, 6u), subgroupBroadcast(two, 7u));
    return dot16(w, a, b, c, d);
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
        return vec4<f32>(dot16_only(w, block.low.xy), 0.0, 0.0, 0.0);
    }
    return vec4<f32>(
        dot16_first(w, block.low),
        dot16_second(w, block.low),
        dot16_first(w, block.high),
        dot16_second(w, block.high),
    );
}
