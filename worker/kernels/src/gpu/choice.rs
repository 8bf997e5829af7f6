//! Which kernels a device gets. For given rows, the best of those that it has and that compute what they must: cooperative
//! matrices, large tiles, or what generated rows have. One line of the log says which, and why not a better one.

use std::path::Path;

use wgpu::{Adapter, CooperativeScalarType};

use super::backend::GpuBackend;
use super::device::Class;
use super::matrices::{COOPERATIVE_BYTES, Given, SUBGROUP_LANES};
use super::tuning::Tuning;
use super::{DeviceConfig, adapter, device, rounding};
use crate::ops::{Backend, OpError};

/// What is asked for instead of what fits the adapter best.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked<'a> {
    /// The kernels of another class.
    pub(super) class: Option<Class>,
    /// These for given rows.
    pub(super) given: Option<Given>,
    /// No decoding by way of f16, even where that is exact.
    pub(super) without_halves: bool,
    /// Where what the driver makes of the shaders is kept, if anywhere.
    pub(super) cache_dir: Option<&'a Path>,
}

/// Opens the adapter that the configuration names, or the best one.
pub(super) fn open(config: &DeviceConfig, asked: &Asked<'_>) -> Result<GpuBackend, OpError> {
    let adapter = adapter::choose(config.adapter.as_deref())?;
    let class = asked.class.unwrap_or_else(|| Class::of(&adapter));
    let open = |given| {
        let opened = device::open(&adapter, config, (class, given), asked.cache_dir)?;
        GpuBackend::new(opened, !asked.without_halves)
    };
    let plain = Tuning::given(class);
    let (backend, given, refused) = match asked.given {
        Some(given) => (open(given)?, given, None),
        None => match refusal(&adapter, config, class).map_or_else(|| checked(open(Given::Cooperative)), Err)
        {
            Ok(backend) => (backend, Given::Cooperative, None),
            Err(reason) => (open(plain)?, plain, Some(reason)),
        },
    };
    let adapter = &backend.info().name;
    match refused {
        None => tracing::info!(adapter, kernels = given.name(), "kernels of given rows"),
        Some(reason) => tracing::info!(
            adapter,
            kernels = given.name(),
            cooperative_matrix_refused = reason,
            "kernels of given rows"
        ),
    }
    Ok(backend)
}

/// Why given rows cannot have cooperative matrices, if they cannot.
fn refusal(adapter: &Adapter, config: &DeviceConfig, class: Class) -> Option<String> {
    if config.cooperative_matrix == Some(false) {
        return Some("the configuration says cooperative_matrix = false".to_owned());
    }
    if class != Class::Gpu {
        return Some("the adapter is a processor that emulates a GPU".to_owned());
    }
    let missing = Given::Cooperative.features() - adapter.features();
    if !missing.is_empty() {
        return Some(format!("the adapter lacks {missing}"));
    }
    let fits = adapter.cooperative_matrix_properties().iter().any(|found| {
        (found.m_size, found.n_size, found.k_size) == (16, 16, 16)
            && found.ab_type == CooperativeScalarType::F16
            && found.cr_type == CooperativeScalarType::F32
    });
    if !fits {
        return Some("the adapter has none of 16 x 16 x 16 from f16 to f32".to_owned());
    }
    let info = adapter.get_info();
    let lanes = (info.subgroup_min_size, info.subgroup_max_size);
    if lanes != (SUBGROUP_LANES, SUBGROUP_LANES) {
        return Some(format!(
            "subgroups have {} to {} lanes, the kernels need {SUBGROUP_LANES}",
            lanes.0, lanes.1
        ));
    }
    let bytes = adapter.limits().max_compute_workgroup_storage_size;
    (bytes < COOPERATIVE_BYTES)
        .then(|| format!("workgroups have {bytes} bytes of memory, the kernels need {COOPERATIVE_BYTES}"))
}

/// A device that computes with cooperative matrices what it must, or what is wrong.
fn checked(opened: Result<GpuBackend, OpError>) -> Result<GpuBackend, String> {
    let mut backend = opened.map_err(|error| error.to_string())?;
    rounding::check(&mut backend)?;
    Ok(backend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{open, open_with_gpu_kernels};

    #[test]
    fn why_given_rows_have_no_cooperative_matrices_is_said() {
        let adapter = adapter::choose(None).expect("an adapter");
        let refused = DeviceConfig {
            cooperative_matrix: Some(false),
            ..DeviceConfig::default()
        };
        let reason = |config: &DeviceConfig, class| refusal(&adapter, config, class);
        assert_eq!(
            reason(&refused, Class::Gpu).expect("refused"),
            "the configuration says cooperative_matrix = false"
        );
        let emulated = reason(&DeviceConfig::default(), Class::Emulated).expect("refused");
        assert_eq!(emulated, "the adapter is a processor that emulates a GPU");
        let backend = open_with_gpu_kernels(&refused).expect("a device");
        let kind = &backend.info().kind;
        assert!(kind.ends_with("given rows tiled"), "{kind}");
        if adapter.get_info().device_type != wgpu::DeviceType::Cpu {
            return;
        }
        let lacking =
            reason(&DeviceConfig::default(), Class::Gpu).expect("no adapter of a processor has any");
        assert!(lacking.starts_with("the adapter lacks"), "{lacking}");
        let kind = open(&DeviceConfig::default())
            .expect("a device")
            .info()
            .kind
            .clone();
        assert!(kind.ends_with("given rows as generated ones"), "{kind}");
    }
}
