// Two neighbouring groups of four columns of four rows of queries, each lane reading them itself.
// Needs of the including shader: x, values, ROWS.
struct Pair {
    first: Four,
    second: Four,
}

fn load_pair(lane: u32, at: vec4<u32>) -> Pair {
    return Pair(load_four(at), load_four(at + 1u));
}

fn load_four(at: vec4<u32>) -> Four {
    var four: Four;
    four.a = values(x[at.x]);
    if (ROWS > 1u) {
        four.b = values(x[at.y]);
        four.c = values(x[at.z]);
        four.d = values(x[at.w]);
    }
    return four;
}
