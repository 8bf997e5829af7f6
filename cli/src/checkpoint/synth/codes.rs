//! The stored tensors of a weight, and what their values are.

use tramontane_kernels::synthetic::{NVFP4_DIVISOR, Values};
use tramontane_model::spec::FP8_BLOCK;
use tramontane_model::tensors::{NVFP4_GROUP, Shape, TensorSpec, WeightFormat};

/// A tensor as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: &'static str,
    pub(super) shape: Vec<u64>,
    pub(super) values: Values,
}

impl Tensor {
    /// Its bytes in the file.
    pub(super) fn bytes(&self) -> u64 {
        let width = match self.values {
            Values::Spread(_) | Values::Norm => 2,
            Values::E4m3 | Values::E2m1 | Values::E4m3Scale(_) => 1,
            Values::Constant(_) => 4,
        };
        self.shape.iter().product::<u64>() * width
    }
}

/// The stored tensors of one weight: its codes, then what scales them.
pub(super) fn stored(tensor: &TensorSpec) -> Vec<Tensor> {
    let name = tensor.id.to_string();
    let beside = |ending: &str| name.replace(".weight", ending);
    let dims = tensor.shape.dims();
    let one = |name: String, dtype, shape: Vec<u64>, values| Tensor {
        name,
        dtype,
        shape,
        values,
    };
    let Shape::Matrix { rows, cols } = tensor.shape else {
        return vec![one(name, "BF16", dims, Values::Norm)];
    };
    let format = tensor.usual_format;
    let codes = Values::codes(format, cols);
    let scale = Values::scales(format, cols);
    let (rows, cols) = (u64::from(rows), u64::from(cols));
    match format {
        WeightFormat::Bf16 => vec![one(name, "BF16", dims, codes)],
        WeightFormat::Fp8Block => {
            let block = u64::from(FP8_BLOCK);
            let blocks = vec![rows.div_ceil(block), cols.div_ceil(block)];
            vec![
                one(name.clone(), "F8_E4M3", dims, codes),
                one(beside(".weight_scale"), "F32", blocks, scale),
            ]
        }
        WeightFormat::Fp8Tensor => vec![
            one(name.clone(), "F8_E4M3", dims, codes),
            one(beside(".qscale_weight"), "F32", Vec::new(), scale),
        ],
        WeightFormat::Nvfp4 => {
            let groups = vec![rows, cols / u64::from(NVFP4_GROUP)];
            let divisor = Values::Constant(NVFP4_DIVISOR);
            vec![
                one(beside(".weight_packed"), "U8", vec![rows, cols / 2], codes),
                one(beside(".weight_scale"), "F8_E4M3", groups, scale),
                one(beside(".weight_global_scale"), "F32", vec![1], divisor),
            ]
        }
    }
}
