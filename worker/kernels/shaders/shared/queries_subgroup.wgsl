// Two neighbouring groups of four columns of four rows of queries, for devices with subgroups of 8 lanes where a load costs as
// much as many sums: each lane reads a group of a row, and they are handed around.
// Needs of the including shader: x, values.
struct Pair {
    first: Four,
    second: Four,
}

fn load_pair(lane: u32, at: vec4<u32>) -> Pair {
    let place = select(select(at.x, at.y, (lane & 1u) != 0u), select(at.z, at.w, (lane & 1u) != 0u), (lane & 2u) != 0u);
    let mine = values(x[place + ((lane >> 2u) & 1u)]);
    return Pair(
        Four(
            subgroupBroadcast(mine, 0u),
            subgroupBroadcast(mine, 1u),
            subgroupBroadcast(mine, 2u),
            subgroupBroadcast(mine, 3u),
        ),
        Four(
            subgroupBroadcast(mine, 4u),
            subgroupBroadcast(mine, 5u),
            subgroupBroadcast(mine, 6u),
            subgroupBroadcast(mine, 7u),
        ),
    );
}
