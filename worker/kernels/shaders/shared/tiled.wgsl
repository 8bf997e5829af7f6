// The work of a workgroup of a matrix kernel for many rows: ROWS rows of activations (32 or 64) times WIDTH rows of weights,
// called columns here. Both pass through workgroup memory, STEP_CHUNKS chunks of 16 terms at a time, weights decoded: what is
// loaded and decoded once serves the whole tile. 32 lanes hold the sums of 32 rows and 32 columns.
//
// Plain rows: workgroup x = tile of ROWS rows. Grouped rows (routed experts): the plan (group_experts.wgsl) holds tiles of
// pairs of one expert. Workgroup y = columns, z = group (heads). Tiles of columns begin at multiples of 16 rows of the
// matrix, so that 16 columns have one multiplier of FP8.
//
// A row's sum goes over the terms in order, in one way for tiles of either height: rows beside it, how many there are, and
// where its tile begins change nothing (DET-1).
// Elements in workgroup memory: tiles_f32.wgsl or tiles_f16.wgsl; sums: sums_plain.wgsl or sums_cooperative.wgsl.
// Needs of the including shader: x, plan, factors, COLUMN_OUTPUTS, column_codes, column_scale, finish; matrix_params.wgsl.
override ROWS: u32 = 64;
override LANES: u32 = ROWS * 4u;
const WIDTH: u32 = 128u;
const COLUMN_ALIGN: u32 = 16u;
// Chunks that have one multiplier of FP8.
const BLOCK_CHUNKS: u32 = 8u;

struct Tile {
    // Rows; 0: there is nothing to do.
    count: u32,
    // The first of them, or its place in the plan.
    first: u32,
    expert: u32,
    group: u32,
    // The first output, counted from a multiple of 16 rows of the matrix, and how far that is before the first there is.
    output: u32,
    skew: u32,
}

// Of each row of the tile: 4-word units to its input, words to its output, and what it is multiplied with before it is
// rounded to f16.
var<workgroup> input_starts: array<u32, ROWS>;
var<workgroup> output_starts: array<u32, ROWS>;
var<workgroup> row_factors: array<f32, ROWS>;

fn find_tile(workgroup: vec3<u32>) -> Tile {
    var tile: Tile;
    tile.group = workgroup.z;
    tile.output = workgroup.y * COLUMN_OUTPUTS;
    tile.skew = (p.first + workgroup.z * p.weight_group) % COLUMN_ALIGN;
    if (tile.output >= tile.skew + p.count) {
        return tile;
    }
    if (p.experts == 0u) {
        tile.first = workgroup.x * ROWS;
        tile.count = min(p.rows - tile.first, ROWS);
        return tile;
    }
    if (workgroup.x >= plan[p.experts + 1u]) {
        return tile;
    }
    let place = p.experts + 2u + p.rows + workgroup.x * 2u;
    let local = plan[place];
    let expert = local + p.bank_first;
    if (expert < p.part_first || expert >= p.part_end) {
        return tile;
    }
    tile.first = plan[place + 1u];
    tile.count = min(plan[local + 1u] - tile.first, ROWS);
    tile.expert = expert - p.part_first;
    return tile;
}

// Rows beyond the last repeat it; what comes out of them is not stored.
fn list_rows(tile: Tile, lane: u32) {
    if (lane < ROWS) {
        var row = tile.first + min(lane, tile.count - 1u);
        var input = row;
        if (p.experts > 0u) {
            row = plan[p.experts + 2u + row];
            input = row / p.pairs_per_row;
        }
        input_starts[lane] = p.in_first + tile.group * p.in_group + input * p.in_stride;
        output_starts[lane] = p.out_first + tile.group * p.out_group + row * p.out_stride;
        if (HALVES) {
            row_factors[lane] = factors[input];
        }
    }
}

// Whether an output is one of those there are, and which; those before and after them become the first and the last.
fn has_output(tile: Tile, output: u32) -> bool {
    return output >= tile.skew && output - tile.skew < p.count;
}

fn nearest_output(tile: Tile, output: u32) -> u32 {
    return min(max(output, tile.skew) - tile.skew, p.count - 1u);
}

// Fills the tiles with chunks from `first` on. Terms beyond the last are zero.
fn load_step(tile: Tile, lane: u32, first: u32) {
    for (var i = lane; i < ROWS * STEP_CHUNKS * 4u; i += LANES) {
        let row = i / (STEP_CHUNKS * 4u);
        let quad = i % (STEP_CHUNKS * 4u);
        var value = vec4<f32>(0.0);
        if (STEP_CHUNKS == 1u || first * 4u + quad < p.chunks * 4u) {
            value = x[input_starts[row] + first * 4u + quad];
            if (HALVES) {
                value *= row_factors[row];
            }
        }
        put_row(row, quad, value);
    }
    for (var i = lane; i < WIDTH * STEP_CHUNKS; i += LANES) {
        let column = i / STEP_CHUNKS;
        let chunk = i % STEP_CHUNKS;
        var codes: Weights;
        var scale = 0.0;
        if (STEP_CHUNKS == 1u || first + chunk < p.chunks) {
            codes = column_codes(tile, column, first + chunk);
            if (!HALVES) {
                scale = column_scale(tile, column, first + chunk);
            } else if (SCALE_PER_ROW) {
                scale = column_scale(tile, column, first + chunk) * CODE_UNIT;
            } else {
                scale = CODE_UNIT;
            }
        }
        put_weights(column, chunk, codes, scale);
    }
}

// What the sum of a block of chunks is multiplied with; 16 columns from a multiple of 16 on share it.
fn block_scale(tile: Tile, column: u32, chunk: u32) -> f32 {
    if (!HALVES || SCALE_PER_ROW) {
        return 1.0;
    }
    return column_scale(tile, column / COLUMN_ALIGN * COLUMN_ALIGN, chunk) / CODE_UNIT;
}

// What sums of weights with these scales are multiplied with: the matrix's multiplier, which the first word is.
fn whole_scale(word: u32) -> f32 {
    if (!HAS_MATRIX_SCALE) {
        return 1.0;
    }
    if (HALVES) {
        return matrix_scale(word) / CODE_UNIT;
    }
    return matrix_scale(word);
}

// Takes back what a row was multiplied with, a power of two.
fn without_factor(row: u32, value: f32) -> f32 {
    if (HALVES) {
        return value * bitcast<f32>((254u << 23u) - bitcast<u32>(row_factors[row]));
    }
    return value;
}
