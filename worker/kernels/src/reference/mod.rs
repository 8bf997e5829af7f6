//! A processor twin of every op, with f64 sums: the oracle of the shaders, and the backend of tests that need no GPU.
//!
//! Plain loops over whole buffers, written from the formulas and independent of the shaders. No speed, no staging:
//! calls take effect at once. Results are rounded to f32 where the device stores them.

mod adjust;
mod attention;
mod backend;
mod buffer;
mod cache;
mod combine;
mod decode;
mod embed;
mod expanded_attention;
mod experts;
mod gate_up;
mod latent;
mod linear;
mod queries;
mod rms_norm;
mod rotate_qkv;
mod route;
mod sample;
mod values;

pub use backend::CpuBackend;
pub use buffer::CpuBuffer;
pub use decode::{bf16, e2m1, e4m3};
pub use sample::{gumbel, philox4x32};
