// row_factors: f[r] = 2^(14 - e), e the exponent of the largest magnitude of x[r]: times it, the row's numbers are below 2^15,
// which f16 holds, and those down to 2^-29 of the largest keep 11 significant bits. The power stays within what f32 has; rows
// of zeros have one as well. One workgroup per row.
override LANES: u32 = 64;
@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> f: array<u32>;

struct Params {
    // Columns / 4.
    quads: u32,
    // The first row, and where its factor goes.
    first: u32,
    place: u32,
}
var<immediate> p: Params;
var<workgroup> largest: array<u32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let start = (p.first + workgroup.x) * p.quads;
    // Magnitudes are in the order of their bits.
    var most = vec4<u32>(0u);
    for (var quad = lane; quad < p.quads; quad += LANES) {
        most = max(most, x[start + quad] & vec4<u32>(0x7fffffffu));
    }
    largest[lane] = max(max(most.x, most.y), max(most.z, most.w));
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if (lane < step) {
            largest[lane] = max(largest[lane], largest[lane + step]);
        }
    }
    if (lane == 0u) {
        // 127 + 14 - (exponent - 127); its inverse must be a normal number as well.
        f[p.place + workgroup.x] = min(268u - (largest[0] >> 23u), 253u) << 23u;
    }
}
