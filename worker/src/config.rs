//! A worker's configuration file, read once, all faults at once, then passed explicitly.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tramontane_kernels::gpu::DeviceConfig;
use tramontane_model::config::{ConfigError, Faults, read_config, read_join_token};
use tramontane_model::ids::WorkerId;
use tramontane_model::members::MAX_DEVICES;
use tramontane_proto::net::{TlsFiles, check_address, check_listen};

use crate::rpc::stage::STEP_DEADLINE;

/// How long a device may take over one piece of work, in milliseconds, where nothing is said.
const DEVICE_TIMEOUT_MS: u64 = 30_000;
/// Most coordinators named.
const MAX_COORDINATORS: usize = 16;
/// Longest grace of a worker that is told to stop, in seconds.
const MAX_DRAIN_GRACE_S: u64 = 3600;

/// A worker, ready to start.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its name, unique in the cluster and kept over restarts.
    pub name: WorkerId,
    /// gRPC addresses of the coordinators, `host:port`; tried in turn until one says who leads.
    pub coordinators: Vec<String>,
    /// What lets it in.
    pub join_token: Vec<u8>,
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// The address told to others, `host:port`; absent: the one listened on.
    pub advertise: Option<String>,
    /// Where Prometheus metrics are served, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
    /// Certificates, beyond loopback.
    pub tls: Option<TlsFiles>,
    /// The checkpoint's directory.
    pub model_dir: PathBuf,
    /// Who is asked for what the directory lacks, `host:port`; empty: it has all of it.
    pub model_sources: Vec<String>,
    /// How long a device may take over one piece of work before it counts as failed.
    pub device_timeout: Duration,
    /// The devices it drives; empty: the best adapter of the machine.
    pub devices: Vec<DeviceConfig>,
    /// Where what drivers make of shaders is kept, if anywhere.
    pub cache_dir: Option<PathBuf>,
    /// How long a worker that is told to stop waits until the cluster does without it.
    pub drain_grace: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    coordinators: Vec<String>,
    join_token_file: PathBuf,
    rpc: RawRpc,
    metrics: Option<RawListen>,
    tls: Option<TlsFiles>,
    model: RawModel,
    #[serde(default = "device_timeout_ms")]
    device_timeout_ms: u64,
    #[serde(default)]
    devices: Vec<DeviceConfig>,
    cache_dir: Option<PathBuf>,
    #[serde(default = "default_drain_grace_s")]
    drain_grace_s: u64,
}

fn default_drain_grace_s() -> u64 {
    10
}

fn device_timeout_ms() -> u64 {
    DEVICE_TIMEOUT_MS
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRpc {
    listen: SocketAddr,
    advertise: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawListen {
    listen: SocketAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel {
    dir: PathBuf,
    #[serde(default)]
    fetch: bool,
    #[serde(default)]
    sources: Vec<String>,
}

/// Where a user's caches are: `$XDG_CACHE_HOME`, else `.cache` in the user's home.
fn usual_cache_dir() -> Option<PathBuf> {
    let of = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
    };
    let caches = of("XDG_CACHE_HOME").or_else(|| Some(of("HOME")?.join(".cache")))?;
    Some(caches.join("tramontane"))
}

impl RawModel {
    /// Who is asked for files: those that are named, then the coordinators.
    fn sources(&self, coordinators: &[String]) -> Vec<String> {
        match self.fetch {
            true => self.sources.iter().chain(coordinators).cloned().collect(),
            false => Vec::new(),
        }
    }
}

impl WorkerConfig {
    /// Reads and checks a configuration file. Relative paths in it are relative to the file's folder.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        read_config(path, Raw::validate)
    }
}

impl Raw {
    fn validate(self, base: &Path, faults: &mut Faults) -> Option<WorkerConfig> {
        self.check_addresses(faults);
        self.check_numbers(faults);
        let name = faults.check(WorkerId::new(&self.name));
        let join_token = faults.check(read_join_token(&base.join(&self.join_token_file)));
        let sources = self.model.sources(&self.coordinators);
        Some(WorkerConfig {
            name: name?,
            coordinators: self.coordinators,
            join_token: join_token?,
            listen: self.rpc.listen,
            advertise: self.rpc.advertise,
            metrics_listen: self.metrics.map(|metrics| metrics.listen),
            tls: self.tls.map(|files| files.relative_to(base)),
            model_sources: sources,
            model_dir: base.join(self.model.dir),
            device_timeout: Duration::from_millis(self.device_timeout_ms),
            devices: self.devices,
            cache_dir: self.cache_dir.map(|dir| base.join(dir)).or_else(usual_cache_dir),
            drain_grace: Duration::from_secs(self.drain_grace_s),
        })
    }

    fn check_addresses(&self, faults: &mut Faults) {
        let has_tls = self.tls.is_some();
        faults.within(
            "the number of coordinators",
            self.coordinators.len() as u64,
            1,
            MAX_COORDINATORS as u64,
        );
        for address in &self.coordinators {
            if let Err(error) = check_address(address, has_tls) {
                faults.add(format_args!("coordinators: {error}"));
            }
        }
        let sources = &self.model.sources;
        faults.within(
            "the number of model.sources",
            sources.len() as u64,
            0,
            MAX_COORDINATORS as u64,
        );
        if !sources.is_empty() && !self.model.fetch {
            faults.add("model.sources is for model.fetch = true");
        }
        for address in sources {
            if let Err(error) = check_address(address, has_tls) {
                faults.add(format_args!("model.sources: {error}"));
            }
        }
        let metrics = self
            .metrics
            .as_ref()
            .map(|metrics| ("metrics.listen", metrics.listen));
        for (key, listen) in [("rpc.listen", self.rpc.listen)].into_iter().chain(metrics) {
            faults.check(check_listen(key, listen, has_tls));
        }
        match &self.rpc.advertise {
            Some(address) => {
                if let Err(error) = check_address(address, has_tls) {
                    faults.add(format_args!("rpc.advertise: {error}"));
                }
            }
            None if self.rpc.listen.ip().is_unspecified() => faults.add(format_args!(
                "rpc.advertise is missing: others cannot reach {}; give host:port",
                self.rpc.listen
            )),
            None => {}
        }
    }

    fn check_numbers(&self, faults: &mut Faults) {
        let mut within = |key: &str, value, low, high| faults.within(key, value, low, high);
        within("drain_grace_s", self.drain_grace_s, 0, MAX_DRAIN_GRACE_S);
        within(
            "the number of devices",
            self.devices.len() as u64,
            0,
            MAX_DEVICES as u64,
        );
        let longest = u64::try_from(STEP_DEADLINE.as_millis()).unwrap_or(u64::MAX);
        within("device_timeout_ms", self.device_timeout_ms, 1000, longest);
        for (index, device) in self.devices.iter().enumerate() {
            within(
                &format!("devices[{index}].memory_bytes"),
                device.memory_bytes.unwrap_or(1),
                1,
                1 << 50,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "w1"
        coordinators = ["127.0.0.1:7100", "127.0.0.1:7101"]
        join_token_file = "token"
        rpc.listen = "127.0.0.1:0"
        model.dir = "models/mini"
        devices = [{ memory_bytes = 1000000 }, { adapter = "llvmpipe", cooperative_matrix = false }]
    "#;

    fn read(text: &str) -> Result<WorkerConfig, ConfigError> {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("token"), "0123456789abcdef\n").expect("writes");
        let path = dir.path().join("worker.toml");
        std::fs::write(&path, text).expect("writes");
        WorkerConfig::read(&path)
    }

    #[test]
    fn a_good_file_is_read() {
        let config = read(GOOD).expect("valid");
        assert_eq!(config.name.as_str(), "w1");
        assert_eq!(config.devices.len(), 2);
        let cooperative: Vec<_> = (config.devices.iter())
            .map(|device| device.cooperative_matrix)
            .collect();
        assert_eq!(cooperative, [None, Some(false)]);
        assert_eq!(config.join_token, b"0123456789abcdef");
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let text = GOOD
            .replace("\"w1\"", "\"W 1\"")
            .replace("127.0.0.1:7101", "10.0.0.7:7101")
            .replace("127.0.0.1:0", "0.0.0.0:7000")
            .replace("\"token\"", "\"nowhere\"")
            .replace(
                "devices = [{ memory_bytes = 1000000 }, { adapter = \"llvmpipe\", cooperative_matrix = false }]",
                "",
            )
            + "device_timeout_ms = 10\n[[devices]]\nmemory_bytes = 0\n";
        let message = read(&text).expect_err("refused").to_string();
        for part in [
            "worker name \"W 1\"",
            "10.0.0.7:7101",
            "rpc.listen is 0.0.0.0:7000",
            "rpc.advertise is missing",
            "nowhere",
            "devices[0].memory_bytes is 0",
            "device_timeout_ms is 10, it must be between 1000 and 60000",
        ] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }

    #[test]
    fn unknown_keys_are_named() {
        let message = read(&format!("{GOOD}\nmemory = 2\n"))
            .expect_err("refused")
            .to_string();
        assert!(
            message.contains("memory") && message.contains("worker.toml"),
            "{message}"
        );
    }
}
