// plain_product: c = a b, all SIZE x SIZE, f32, row-major. Not an op: what a device's arithmetic is measured with.
// Workgroup: TILE_ROWS x TILE_COLS of c; a lane has LANE_ROWS rows of four columns. 16 columns of a, and as many rows of b,
// pass through workgroup memory at a time. SIZE is a multiple of all three.
override SIZE: u32 = 1024;
override TILE_ROWS: u32 = 64;
override TILE_COLS: u32 = 64;
// At most 8.
override LANE_ROWS: u32 = 4;
const DEPTH: u32 = 16;
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> c: array<vec4<f32>>;

// By column of a, so that a lane's rows are neighbours.
var<workgroup> left: array<f32, 16 * TILE_ROWS>;
var<workgroup> right: array<vec4<f32>, 4 * TILE_COLS>;

@compute @workgroup_size((TILE_ROWS / LANE_ROWS) * (TILE_COLS / 4))
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let quads = TILE_COLS / 4u;
    let lanes = (TILE_ROWS / LANE_ROWS) * quads;
    let quad = lane % quads;
    let row = lane / quads * LANE_ROWS;
    let first_row = workgroup.y * TILE_ROWS;
    let first_quad = workgroup.x * quads;
    var sums: array<vec4<f32>, 8>;
    for (var k = 0u; k < SIZE; k += DEPTH) {
        for (var i = lane; i < TILE_ROWS * 4u; i += lanes) {
            let of_row = i / 4u;
            let values = a[(first_row + of_row) * (SIZE / 4u) + k / 4u + i % 4u];
            let place = i % 4u * 4u * TILE_ROWS + of_row;
            left[place] = values.x;
            left[place + TILE_ROWS] = values.y;
            left[place + 2u * TILE_ROWS] = values.z;
            left[place + 3u * TILE_ROWS] = values.w;
        }
        for (var i = lane; i < DEPTH * quads; i += lanes) {
            right[i] = b[(k + i / quads) * (SIZE / 4u) + first_quad + i % quads];
        }
        workgroupBarrier();
        for (var depth = 0u; depth < DEPTH; depth += 1u) {
            let of_b = right[depth * quads + quad];
            let of_a = depth * TILE_ROWS + row;
            for (var i = 0u; i < LANE_ROWS; i += 1u) {
                sums[i] = fma(vec4<f32>(left[of_a + i]), of_b, sums[i]);
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < LANE_ROWS; i += 1u) {
        c[(first_row + row + i) * (SIZE / 4u) + first_quad + quad] = sums[i];
    }
}
