// Sums of tiled.wgsl by cooperative matrices of 16 x 16, f16 to f32: a subgroup, which has 32 lanes, has two by two of them.
// A sum is one over each block of 8 chunks, 16 terms at a time, in the order in which the device adds these, and one over the
// blocks. What comes out passes through workgroup memory, because a lane cannot tell which elements it holds.
alias Rows = coop_mat16x16<f16, A>;
alias Columns = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;
// Per subgroup, 16 rows of 32 columns.
var<workgroup> staged: array<f32, LANES * 16u>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) square: u32,
    @builtin(subgroup_invocation_id) place: u32,
) {
    let tile = find_tile(workgroup);
    if (tile.count == 0u) {
        return;
    }
    list_rows(tile, lane);
    workgroupBarrier();
    let row = square / (WIDTH / 32u) * 32u;
    let column = square % (WIDTH / 32u) * 32u;
    // By the halves of rows and columns.
    var sum00 = Sums();
    var sum01 = Sums();
    var sum10 = Sums();
    var sum11 = Sums();
    for (var block = 0u; block < p.chunks; block += BLOCK_CHUNKS) {
        var part00 = Sums();
        var part01 = Sums();
        var part10 = Sums();
        var part11 = Sums();
        for (var chunk = block; chunk < min(block + BLOCK_CHUNKS, p.chunks); chunk += STEP_CHUNKS) {
            load_step(tile, lane, chunk);
            workgroupBarrier();
            for (var k = 0u; k < STEP_CHUNKS; k += 1u) {
                let rows0 = coopLoadT<Rows>(&row_tile[row * STRIDE + k * 8u], STRIDE);
                let rows1 = coopLoadT<Rows>(&row_tile[(row + 16u) * STRIDE + k * 8u], STRIDE);
                let columns0 = coopLoad<Columns>(&weight_tile[column * STRIDE + k * 8u], STRIDE);
                let columns1 = coopLoad<Columns>(&weight_tile[(column + 16u) * STRIDE + k * 8u], STRIDE);
                part00 = coopMultiplyAdd(rows0, columns0, part00);
                part01 = coopMultiplyAdd(rows0, columns1, part01);
                part10 = coopMultiplyAdd(rows1, columns0, part10);
                part11 = coopMultiplyAdd(rows1, columns1, part11);
            }
            workgroupBarrier();
        }
        let scale0 = block_scale(tile, column, block);
        let scale1 = block_scale(tile, column + 16u, block);
        sum00 = sum00 + part00 * scale0;
        sum01 = sum01 + part01 * scale1;
        sum10 = sum10 + part10 * scale0;
        sum11 = sum11 + part11 * scale1;
    }
    let first = square * 512u;
    let second = first + 16u;
    let staged_stride = 32u;
    coopStoreT(sum00, &staged[first], staged_stride);
    coopStoreT(sum01, &staged[second], staged_stride);
    workgroupBarrier();
    finish_half(tile, row, column, first, place);
    workgroupBarrier();
    coopStoreT(sum10, &staged[first], staged_stride);
    coopStoreT(sum11, &staged[second], staged_stride);
    workgroupBarrier();
    finish_half(tile, row + 16u, column, first, place);
}

// What is staged of 16 rows from `row` on.
fn finish_half(tile: Tile, row: u32, column: u32, first: u32, place: u32) {
    for (var i = place; i < 256u; i += 32u) {
        let at = first + i / 16u * 32u + i % 16u;
        finish(tile, row + i / 16u, column + i % 16u, staged[at], staged[at + 16u]);
    }
}
