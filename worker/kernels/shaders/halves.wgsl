// halves: y[2 i], y[2 i + 1] = the two f16 of x[i], as bits of f32.
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(32)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x < arrayLength(&x)) {
        let pair = unpack2x16float(x[id.x]);
        y[id.x * 2u] = bitcast<u32>(pair.x);
        y[id.x * 2u + 1u] = bitcast<u32>(pair.y);
    }
}
