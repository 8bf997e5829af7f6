// linear_tiled: what linear.wgsl computes, for given rows.
// Workgroup: x = tile of rows, y = 128 outputs, z = group. Tiles and order of sums: shared/tiled.wgsl.
// Twins: src/reference/linear.rs, values.rs, experts.rs
const COLUMN_OUTPUTS: u32 = WIDTH;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weights: array<Chunk>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
@group(0) @binding(3) var<storage, read> plan: array<u32>;
@group(0) @binding(4) var<storage, read> factors: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

// A column's row among those of the matrix that the dispatch has.
fn column_row(tile: Tile, column: u32) -> u32 {
    return tile.group * p.weight_group + nearest_output(tile, tile.output + column);
}

fn column_codes(tile: Tile, column: u32, chunk: u32) -> Weights {
    return decode(weights[p.weight + tile.expert * p.record + column_row(tile, column) * p.chunks + chunk]);
}

fn column_scale(tile: Tile, column: u32, chunk: u32) -> f32 {
    let of_row = row_scales(p.scale + tile.expert * p.record_words, p.first + column_row(tile, column));
    return scale_of(scales[scale_at(of_row, chunk)], of_row, chunk);
}

// The sums of a row for a column and for the one 16 columns on.
fn finish(tile: Tile, row: u32, column: u32, first: f32, second: f32) {
    let whole = whole_scale(scales[p.scale + tile.expert * p.record_words]);
    store(tile, row, tile.output + column, without_factor(row, first * whole));
    store(tile, row, tile.output + column + 16u, without_factor(row, second * whole));
}

fn store(tile: Tile, row: u32, output: u32, value: f32) {
    if (row >= tile.count || !has_output(tile, output)) {
        return;
    }
    let place = output_starts[row] + output - tile.skew;
    if (p.add == 1u) {
        y[place] += value;
    } else {
        y[place] = value;
    }
}
