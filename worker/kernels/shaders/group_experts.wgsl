// group_experts: sorts pairs (row, choice) by local expert, and cuts them in tiles. plan = where each local expert's pairs
// start and where the last one's end; the number of tiles; the pairs; of each tile its expert and the place of its first
// pair. One workgroup: counts, adds up, scatters. The order within an expert is arbitrary: what is computed of a pair does
// not depend on the pairs beside it.
// Twin: src/reference/experts.rs
override LANES: u32 = 32;
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read_write> plan: array<u32>;

struct Params {
    // Pairs to sort, and the first of them.
    pairs: u32,
    first_pair: u32,
    first: u32,
    experts: u32,
    // Most pairs of a tile; 1: pairs are not cut in tiles.
    tile_rows: u32,
}
var<immediate> p: Params;
var<workgroup> cursors: array<atomic<u32>, 1024>;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
    for (var expert = lane; expert < p.experts; expert += LANES) {
        atomicStore(&cursors[expert], 0u);
    }
    workgroupBarrier();
    for (var pair = p.first_pair + lane; pair < p.first_pair + p.pairs; pair += LANES) {
        let expert = ids[pair] - p.first;
        if (expert < p.experts) {
            atomicAdd(&cursors[expert], 1u);
        }
    }
    workgroupBarrier();
    if (lane == 0u) {
        var start = 0u;
        var tile = 0u;
        let tiles = p.experts + 2u + p.pairs;
        for (var expert = 0u; expert < p.experts; expert += 1u) {
            let count = atomicLoad(&cursors[expert]);
            atomicStore(&cursors[expert], start);
            plan[expert] = start;
            if (p.tile_rows > 1u) {
                for (var first = start; first < start + count; first += p.tile_rows) {
                    plan[tiles + tile * 2u] = expert;
                    plan[tiles + tile * 2u + 1u] = first;
                    tile += 1u;
                }
            }
            start += count;
        }
        plan[p.experts] = start;
        plan[p.experts + 1u] = tile;
    }
    workgroupBarrier();
    for (var pair = p.first_pair + lane; pair < p.first_pair + p.pairs; pair += LANES) {
        let expert = ids[pair] - p.first;
        if (expert < p.experts) {
            plan[p.experts + 2u + atomicAdd(&cursors[expert], 1u)] = pair;
        }
    }
}
