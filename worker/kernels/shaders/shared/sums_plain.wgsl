// Sums of tiled.wgsl by fma: a lane has 4 rows, 8 apart, of 8 columns, 4 apart. A sum is one chain over each block of 8 chunks,
// and one over the blocks.
fn take_quad(w: vec4<f32>, x0: vec4<f32>, x1: vec4<f32>, x2: vec4<f32>, x3: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
    var result = fma(vec4<f32>(w.x), x0, sum);
    result = fma(vec4<f32>(w.y), x1, result);
    result = fma(vec4<f32>(w.z), x2, result);
    return fma(vec4<f32>(w.w), x3, result);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tile = find_tile(workgroup);
    if (tile.count == 0u) {
        return;
    }
    list_rows(tile, lane);
    workgroupBarrier();
    let square = lane / 32u;
    let row = square / (WIDTH / 32u) * 32u + lane % 8u;
    let column = square % (WIDTH / 32u) * 32u + lane % 32u / 8u;
    // By column, four rows each.
    var part: array<vec4<f32>, 8>;
    var sum: array<vec4<f32>, 8>;
    for (var block = 0u; block < p.chunks; block += BLOCK_CHUNKS) {
        for (var chunk = block; chunk < min(block + BLOCK_CHUNKS, p.chunks); chunk += STEP_CHUNKS) {
            load_step(tile, lane, chunk);
            workgroupBarrier();
            for (var quad = 0u; quad < STEP_CHUNKS * 4u; quad += 1u) {
                let a = row_quad(row, quad);
                let b = row_quad(row + 8u, quad);
                let c = row_quad(row + 16u, quad);
                let d = row_quad(row + 24u, quad);
                let x0 = vec4<f32>(a.x, b.x, c.x, d.x);
                let x1 = vec4<f32>(a.y, b.y, c.y, d.y);
                let x2 = vec4<f32>(a.z, b.z, c.z, d.z);
                let x3 = vec4<f32>(a.w, b.w, c.w, d.w);
                part[0] = take_quad(weight_quad(column, quad), x0, x1, x2, x3, part[0]);
                part[1] = take_quad(weight_quad(column + 4u, quad), x0, x1, x2, x3, part[1]);
                part[2] = take_quad(weight_quad(column + 8u, quad), x0, x1, x2, x3, part[2]);
                part[3] = take_quad(weight_quad(column + 12u, quad), x0, x1, x2, x3, part[3]);
                part[4] = take_quad(weight_quad(column + 16u, quad), x0, x1, x2, x3, part[4]);
                part[5] = take_quad(weight_quad(column + 20u, quad), x0, x1, x2, x3, part[5]);
                part[6] = take_quad(weight_quad(column + 24u, quad), x0, x1, x2, x3, part[6]);
                part[7] = take_quad(weight_quad(column + 28u, quad), x0, x1, x2, x3, part[7]);
            }
            workgroupBarrier();
        }
        for (var j = 0u; j < 8u; j += 1u) {
            sum[j] = fma(part[j], vec4<f32>(block_scale(tile, column + 4u * j, block)), sum[j]);
            part[j] = vec4<f32>(0.0);
        }
    }
    for (var j = 0u; j < 4u; j += 1u) {
        let first = sum[j];
        let second = sum[j + 4u];
        finish(tile, row, column + 4u * j, first.x, second.x);
        finish(tile, row + 8u, column + 4u * j, first.y, second.y);
        finish(tile, row + 16u, column + 4u * j, first.z, second.z);
        finish(tile, row + 24u, column + 4u * j, first.w, second.w);
    }
}
