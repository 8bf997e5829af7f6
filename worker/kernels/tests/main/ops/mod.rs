//! Every op on the best Vulkan adapter against its twin, and DET-1 bit for bit: rows alone, in another order, and with
//! split weights.

mod attention;
mod device;
mod expanded;
mod given;
mod long_sequences;
mod matrices;
mod real_widths;
mod rig;
mod rows;
mod sampler;
