// gate_up_tiled: what gate_up.wgsl computes, for given rows. Of 32 columns the first 16 are rows of the gate, the others the
// same rows of the other matrix.
// Workgroup: x = tile of rows, y = 64 outputs. Tiles and order of sums: shared/tiled.wgsl.
// Twins: src/reference/gate_up.rs, experts.rs
const COLUMN_OUTPUTS: u32 = WIDTH / 2u;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> gate: array<Chunk>;
@group(0) @binding(2) var<storage, read> up: array<Chunk>;
@group(0) @binding(3) var<storage, read> gate_scales: array<u32>;
@group(0) @binding(4) var<storage, read> up_scales: array<u32>;
@group(0) @binding(5) var<storage, read> plan: array<u32>;
@group(0) @binding(6) var<storage, read> factors: array<f32>;
@group(0) @binding(7) var<storage, read_write> h: array<f32>;

fn is_gate(column: u32) -> bool {
    return column % 32u < 16u;
}

// The output that a column belongs to, in the tile.
fn column_output(column: u32) -> u32 {
    return column / 32u * 16u + column % 16u;
}

fn column_codes(tile: Tile, column: u32, chunk: u32) -> Weights {
    let at = tile.expert * p.record + nearest_output(tile, tile.output + column_output(column)) * p.chunks + chunk;
    if (is_gate(column)) {
        return decode(gate[p.weight + at]);
    }
    return decode(up[p.weight2 + at]);
}

fn column_scale(tile: Tile, column: u32, chunk: u32) -> f32 {
    let row = p.first + nearest_output(tile, tile.output + column_output(column));
    let record = tile.expert * p.record_words;
    if (is_gate(column)) {
        let of_gate = row_scales(p.scale + record, row);
        return scale_of(gate_scales[scale_at(of_gate, chunk)], of_gate, chunk);
    }
    let of_up = row_scales(p.scale2 + record, row);
    return scale_of(up_scales[scale_at(of_up, chunk)], of_up, chunk);
}

// The sums of a row for a column of the gate and for the other matrix.
fn finish(tile: Tile, row: u32, column: u32, first: f32, second: f32) {
    let output = tile.output + column_output(column);
    if (row >= tile.count || !has_output(tile, output)) {
        return;
    }
    let record = tile.expert * p.record_words;
    let gated = without_factor(row, first * whole_scale(gate_scales[p.scale + record]));
    let other = without_factor(row, second * whole_scale(up_scales[p.scale2 + record]));
    h[output_starts[row] + output - tile.skew] = gated / (1.0 + exp(-gated)) * other;
}
