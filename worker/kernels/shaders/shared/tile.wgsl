// The work of a workgroup of a matrix kernel: up to ROWS rows of activations (1, 4, 8 or 16) times LANES_N rows of a weight.
//
// Lanes: LANES_N neighbours in n, LANES_K of them share one n and take every LANES_K-th chunk of 16 columns. A row's
// sum is: 16 columns as four interleaved chains of fma, added in pairs; chunks in order; lanes as a binary tree. It
// depends on the number of columns alone: rows beside it, and how many there are, change nothing (DET-1).
//
// Plain rows: workgroup x = tile of ROWS rows. Grouped rows (routed experts): the plan (group_experts.wgsl) holds pairs by
// expert; workgroup x = one pair, or a tile of up to ROWS pairs of one expert.
// Activations come through rows_direct.wgsl or rows_subgroup.wgsl, weights through weights.wgsl.
// Needs of the including shader: plan, ids, matrix_params.wgsl. Twin: src/reference/linear.rs
override ROWS: u32 = 4;
override LANES_K: u32 = 1;
override LANES_N: u32 = 32;
override GROUPED: bool = false;

struct Tile {
    count: u32,
    expert: u32,
    // Input rows and output rows, by fours. Those beyond `count` repeat the last.
    inputs: array<vec4<u32>, 4>,
    outputs: array<vec4<u32>, 4>,
}

// Four rows from `first` on; those beyond `last` repeat it.
fn four(first: u32, last: u32) -> vec4<u32> {
    return min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
}

fn plain_tile(index: u32) -> Tile {
    let first = index * ROWS;
    var tile: Tile;
    tile.count = min(p.rows - first, ROWS);
    for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
        tile.inputs[i] = four(first + i * 4u, p.rows - 1u);
        tile.outputs[i] = tile.inputs[i];
    }
    return tile;
}

fn grouped_tile(index: u32) -> Tile {
    var tile: Tile;
    let pairs = p.experts + 2u;
    var local = p.experts;
    var first = index;
    var end = index + 1u;
    if (ROWS == 1u) {
        if (index < plan[p.experts]) {
            local = ids[plan[pairs + index]] - p.bank_first;
        }
    } else if (index < plan[p.experts + 1u]) {
        let place = pairs + p.rows + index * 2u;
        local = plan[place];
        first = plan[place + 1u];
        end = min(first + ROWS, plan[local + 1u]);
    }
    let expert = local + p.bank_first;
    if (local >= p.experts || expert < p.part_first || expert >= p.part_end) {
        return tile;
    }
    tile.count = end - first;
    tile.expert = expert - p.part_first;
    for (var i = 0u; i < (ROWS + 3u) / 4u; i += 1u) {
        let slots = four(first + i * 4u, end - 1u) + vec4<u32>(pairs);
        let rows = vec4<u32>(plan[slots.x], plan[slots.y], plan[slots.z], plan[slots.w]);
        tile.inputs[i] = rows / vec4<u32>(p.pairs_per_row);
        tile.outputs[i] = rows;
    }
    return tile;
}

fn dot16(w: Weights, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> f32 {
    var sum = w.a * a;
    sum = fma(w.b, b, sum);
    sum = fma(w.c, c, sum);
    sum = fma(w.d, d, sum);
    return (sum.x + sum.y) + (sum.z + sum.w);
}

// Adds a chunk of four rows.
fn take(w: Weights, rows: Block, scale: f32, sum: vec4<f32>) -> vec4<f32> {
    return fma(dot16_rows(w, rows), vec4<f32>(scale), sum);
}

var<workgroup> lane_partials: array<vec4<f32>, LANES_K * LANES_N>;

// Adds what the lanes of one n hold; the result is right in the first of them.
fn add_lanes(lane: u32, value: vec4<f32>) -> vec4<f32> {
    if (LANES_K == 1u) {
        return value;
    }
    lane_partials[lane] = value;
    for (var step = LANES_K / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if (lane % LANES_K < step) {
            lane_partials[lane] += lane_partials[lane + step];
        }
    }
    let sum = lane_partials[lane];
    workgroupBarrier();
    return sum;
}
