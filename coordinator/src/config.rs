//! A coordinator's configuration file, read once, all faults at once, then passed explicitly.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tramontane_model::config::{ConfigError, Faults, read_config, read_join_token};
use tramontane_model::ids::CoordinatorId;
use tramontane_model::placement::KvFormat;
use tramontane_model::step::StepBounds;
use tramontane_proto::net::{TlsFiles, check_address, check_listen};

use crate::control::limits::MAX_REPLICAS;

/// A lease must outlast this many heartbeats.
const HEARTBEATS_PER_LEASE: u32 = 3;

/// A coordinator, ready to start.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// This member.
    pub id: CoordinatorId,
    /// Name of the cluster: members of another refuse this one's messages.
    pub cluster: String,
    /// Where the raft log lives.
    pub data_dir: PathBuf,
    /// What workers must show to join.
    pub join_token: Vec<u8>,
    /// Where HTTP is served.
    pub http_listen: SocketAddr,
    /// Where gRPC is served.
    pub rpc_listen: SocketAddr,
    /// Certificates, beyond loopback.
    pub tls: Option<TlsFiles>,
    /// Members that found the cluster: 1, 3 or 5, this one among them unless it joins.
    pub initial_members: Vec<Member>,
    /// This coordinator is added to a cluster that runs.
    pub join: bool,
    /// The checkpoint's directory: `params.json` or `config.json`, `tekken.json` and tensor headers are read.
    pub model_dir: PathBuf,
    /// The model's name in the API.
    pub model_name: String,
    /// What the planner is asked for.
    pub placement: PlacementConfig,
    /// Bounds of every replica's steps.
    pub steps: StepBounds,
    /// When workers count as lost.
    pub leases: LeaseConfig,
    /// How requests spread over replicas.
    pub routing: RoutingConfig,
    /// Bounds of the HTTP side.
    pub requests: RequestConfig,
    /// What the log may hold.
    pub log: LogConfig,
}

/// A founding member.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its raft id, at least 1.
    pub id: u64,
    /// Its gRPC address, `host:port`.
    pub address: String,
}

/// What the planner is asked for: wishes, relaxed where they do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementConfig {
    /// Most replicas of the model; absent: as many as fit.
    pub replicas: Option<u32>,
    /// Pipeline stages; absent: as few as fit.
    pub stages: Option<u32>,
    /// Expert groups of each stage; absent: as few as fit.
    pub expert_groups: Option<u32>,
    /// Tokens per KV block.
    pub kv_block_tokens: u32,
    /// Fewest tokens that the KV cache must hold for a placement to be worth making.
    pub kv_tokens_min: u32,
    /// Most tokens that the KV cache is given.
    pub kv_tokens_max: u32,
    /// How the KV cache stores its values.
    pub kv_format: KvFormatChoice,
    /// Whether spare memory of devices is filled with copies of weights, so that a loss needs no loading.
    pub standbys: bool,
    /// How long to wait for more workers before a placement that misses the wishes is made, in milliseconds.
    pub settle_ms: u64,
}

impl Default for PlacementConfig {
    fn default() -> Self {
        Self {
            replicas: None,
            stages: None,
            expert_groups: None,
            kv_block_tokens: 16,
            kv_tokens_min: 4096,
            kv_tokens_max: 1 << 20,
            kv_format: KvFormatChoice::Auto,
            standbys: true,
            settle_ms: 3000,
        }
    }
}

/// How the KV cache of a replica stores its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvFormatChoice {
    /// As f16 where every device with a part of it is a GPU, as f32 elsewhere.
    Auto,
    /// As f16.
    F16,
    /// As f32.
    F32,
}

impl KvFormatChoice {
    /// The format, if it is not the planner's choice.
    pub fn wish(self) -> Option<KvFormat> {
        match self {
            Self::Auto => None,
            Self::F16 => Some(KvFormat::F16),
            Self::F32 => Some(KvFormat::F32),
        }
    }
}

/// When workers count as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeaseConfig {
    /// How often a worker reports, in milliseconds.
    pub heartbeat_ms: u32,
    /// After how long without a report it counts as lost, in milliseconds.
    pub lease_ms: u32,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            heartbeat_ms: 250,
            lease_ms: 2000,
        }
    }
}

/// What a request's replica is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoutingPolicy {
    /// The replica that was given the longest part of the prompt before, unless it has too much to do; else the one
    /// with the least to do.
    Prefix,
    /// Each in turn.
    RoundRobin,
}

/// How requests spread over replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoutingConfig {
    /// What a request's replica is chosen by.
    pub policy: RoutingPolicy,
    /// How many requests more than the least loaded replica one may have and still be given another for its prefix.
    pub max_imbalance: u32,
}

impl Default for RoutingConfig {
    fn default() -> Self {
        Self {
            policy: RoutingPolicy::Prefix,
            max_imbalance: 16,
        }
    }
}

/// Bounds of the HTTP side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RequestConfig {
    /// Most requests in flight on this coordinator.
    pub max_live: usize,
    /// Longest time a request may take, in seconds.
    pub timeout_s: u64,
    /// Largest body, in bytes.
    pub max_body_bytes: usize,
    /// How long a new request waits for a replica that is being placed or loaded, in seconds.
    pub serving_wait_s: u64,
    /// How long new requests are still taken in once the process is told to stop and readiness has dropped, in
    /// milliseconds.
    pub shutdown_notice_ms: u64,
    /// How long requests in flight may go on after that, in seconds.
    pub shutdown_grace_s: u64,
}

impl Default for RequestConfig {
    fn default() -> Self {
        Self {
            max_live: 1024,
            timeout_s: 600,
            max_body_bytes: 4 << 20,
            serving_wait_s: 10,
            shutdown_notice_ms: 1000,
            shutdown_grace_s: 10,
        }
    }
}

/// What the log may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Whether the line of each request has its body, and so its prompt.
    pub prompts: bool,
}

impl RequestConfig {
    /// Longest time a request may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s)
    }

    /// How long new requests are still taken in once the process is told to stop.
    pub fn shutdown_notice(&self) -> Duration {
        Duration::from_millis(self.shutdown_notice_ms)
    }

    /// How long requests in flight may go on after that.
    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_secs(self.shutdown_grace_s)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    id: u64,
    cluster: String,
    data_dir: PathBuf,
    join_token_file: PathBuf,
    http: RawListen,
    rpc: RawListen,
    tls: Option<TlsFiles>,
    initial_members: Vec<Member>,
    #[serde(default)]
    join: bool,
    model: RawModel,
    #[serde(default)]
    placement: PlacementConfig,
    #[serde(default)]
    steps: StepBounds,
    #[serde(default)]
    leases: LeaseConfig,
    #[serde(default)]
    routing: RoutingConfig,
    #[serde(default)]
    requests: RequestConfig,
    #[serde(default)]
    log: LogConfig,
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
    name: Option<String>,
}

impl CoordinatorConfig {
    /// Reads and checks a configuration file. Relative paths in it are relative to the file's folder.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        read_config(path, Raw::validate)
    }
}

impl Raw {
    fn validate(self, base: &Path, faults: &mut Faults) -> Option<CoordinatorConfig> {
        self.check_members(faults);
        self.check_numbers(faults);
        for (key, listen) in [("http.listen", self.http.listen), ("rpc.listen", self.rpc.listen)] {
            faults.check(check_listen(key, listen, self.tls.is_some()));
        }
        let join_token = faults.check(read_join_token(&base.join(&self.join_token_file)))?;
        let model_dir = base.join(&self.model.dir);
        let folder = model_dir
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let model_name = self.model.name.or(folder).unwrap_or_default();
        faults.within("the length of model.name", model_name.len() as u64, 1, 256);
        Some(CoordinatorConfig {
            id: CoordinatorId(self.id),
            cluster: self.cluster,
            data_dir: base.join(self.data_dir),
            join_token,
            http_listen: self.http.listen,
            rpc_listen: self.rpc.listen,
            tls: self.tls.map(|files| files.relative_to(base)),
            initial_members: self.initial_members,
            join: self.join,
            model_dir,
            model_name,
            placement: self.placement,
            steps: self.steps,
            leases: self.leases,
            routing: self.routing,
            requests: self.requests,
            log: self.log,
        })
    }

    fn check_members(&self, faults: &mut Faults) {
        faults.within("the length of cluster", self.cluster.len() as u64, 1, 64);
        let members = &self.initial_members;
        if ![1, 3, 5].contains(&members.len()) {
            faults.add(format_args!(
                "initial_members has {} entries, it must have 1, 3 or 5",
                members.len()
            ));
        }
        let ids: BTreeSet<u64> = members.iter().map(|member| member.id).collect();
        if ids.len() != members.len() || ids.contains(&0) {
            faults.add("initial_members must have distinct ids of at least 1");
        }
        match (ids.contains(&self.id), self.join) {
            (true, false) | (false, true) => {}
            (false, false) => faults.add(format_args!(
                "id is {}, which initial_members does not name; a coordinator that is added to a cluster which runs has join = true",
                self.id
            )),
            (true, true) => faults.add(format_args!(
                "id is {}, which initial_members names, and join is true: a coordinator that is added needs an id never used before",
                self.id
            )),
        }
        for member in members {
            if let Err(error) = check_address(&member.address, self.tls.is_some()) {
                faults.add(format_args!("initial_members: id {}: {error}", member.id));
            }
        }
    }

    fn check_numbers(&self, faults: &mut Faults) {
        let mut within = |key: &str, value, low, high| faults.within(key, value, low, high);
        let placement = &self.placement;
        let replicas = placement.replicas.unwrap_or(1).into();
        within("placement.replicas", replicas, 1, MAX_REPLICAS as u64);
        within("placement.stages", placement.stages.unwrap_or(1).into(), 1, 1024);
        within(
            "placement.expert_groups",
            placement.expert_groups.unwrap_or(1).into(),
            1,
            1024,
        );
        within(
            "placement.kv_block_tokens",
            placement.kv_block_tokens.into(),
            1,
            1024,
        );
        within(
            "placement.kv_tokens_min",
            placement.kv_tokens_min.into(),
            1,
            placement.kv_tokens_max.into(),
        );
        within(
            "placement.kv_tokens_max",
            placement.kv_tokens_max.into(),
            1,
            1 << 31,
        );
        within("placement.settle_ms", placement.settle_ms, 0, 3_600_000);
        self.steps.check("steps", faults);
        let mut within = |key: &str, value, low, high| faults.within(key, value, low, high);
        let LeaseConfig {
            heartbeat_ms,
            lease_ms,
        } = self.leases;
        within("leases.heartbeat_ms", heartbeat_ms.into(), 10, 60_000);
        let shortest = u64::from(heartbeat_ms) * u64::from(HEARTBEATS_PER_LEASE);
        within("leases.lease_ms", lease_ms.into(), shortest, 600_000);
        let imbalance = self.routing.max_imbalance.into();
        within("routing.max_imbalance", imbalance, 0, 1 << 20);
        within("requests.max_live", self.requests.max_live as u64, 1, 1 << 20);
        within("requests.timeout_s", self.requests.timeout_s, 1, 86_400);
        within("requests.serving_wait_s", self.requests.serving_wait_s, 0, 3600);
        let notice = self.requests.shutdown_notice_ms;
        within("requests.shutdown_notice_ms", notice, 0, 600_000);
        within(
            "requests.shutdown_grace_s",
            self.requests.shutdown_grace_s,
            0,
            3600,
        );
        within(
            "requests.max_body_bytes",
            self.requests.max_body_bytes as u64,
            1024,
            1 << 30,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        id = 2
        cluster = "test"
        data_dir = "data"
        join_token_file = "token"
        http.listen = "127.0.0.1:8080"
        rpc.listen = "127.0.0.1:7100"
        model.dir = "models/mini"
        initial_members = [
            { id = 1, address = "127.0.0.1:7101" },
            { id = 2, address = "127.0.0.1:7100" },
            { id = 3, address = "127.0.0.1:7102" },
        ]
    "#;

    fn read(text: &str) -> Result<CoordinatorConfig, ConfigError> {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("token"), "0123456789abcdef\n").expect("writes");
        let path = dir.path().join("coordinator.toml");
        std::fs::write(&path, text).expect("writes");
        CoordinatorConfig::read(&path)
    }

    #[test]
    fn a_good_file_is_read() {
        let config = read(GOOD).expect("valid");
        assert_eq!(config.id, CoordinatorId(2));
        assert_eq!(config.join_token, b"0123456789abcdef");
        assert_eq!(config.model_name, "mini");
        assert!(config.data_dir.is_absolute() && config.data_dir.ends_with("data"));
        assert_eq!(config.placement.kv_format.wish(), None);
        for format in [KvFormat::F16, KvFormat::F32] {
            let config = read(&format!("{GOOD}\nplacement.kv_format = \"{format}\"\n")).expect("valid");
            assert_eq!(config.placement.kv_format.wish(), Some(format));
        }
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let text = GOOD
            .replace("id = 2\n", "id = 9\n")
            .replace("127.0.0.1:8080", "0.0.0.0:8080")
            .replace("\"token\"", "\"nowhere\"")
            .replace("{ id = 3, address = \"127.0.0.1:7102\" },", "")
            + "leases.lease_ms = 100\nsteps.max_rows = 1\nplacement.kv_block_tokens = 0\n"
            + "placement.replicas = 0\nrouting.max_imbalance = 2000000\n";
        let message = read(&text).expect_err("refused").to_string();
        for part in [
            "id is 9",
            "http.listen is 0.0.0.0:8080",
            "nowhere",
            "has 2 entries",
            "leases.lease_ms is 100, it must be between 750",
            "kv_block_tokens is 0",
            "steps.max_rows is 1",
            "placement.replicas is 0, it must be between 1 and 64",
            "routing.max_imbalance is 2000000",
        ] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_named() {
        let message = read(&format!("{GOOD}\nplacement.kv_format = \"f8\"\n"))
            .expect_err("refused")
            .to_string();
        for part in ["kv_format", "unknown variant `f8`", "`auto`, `f16`, `f32`"] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
        let message = read(&format!("{GOOD}\nplacement.stagse = 2\n"))
            .expect_err("refused")
            .to_string();
        assert!(
            message.contains("stagse") && message.contains("coordinator.toml"),
            "{message}"
        );
        let message = read(&format!("{GOOD}\nplacement.stages = \"2\"\n"))
            .expect_err("refused")
            .to_string();
        assert!(message.contains("stages"), "{message}");
        let message = read(&format!("{GOOD}\nrouting.policy = \"random\"\n"))
            .expect_err("refused")
            .to_string();
        assert!(
            message.contains("random") && message.contains("round_robin"),
            "{message}"
        );
        let missing = CoordinatorConfig::read(Path::new("no/such/file.toml")).expect_err("refused");
        assert!(
            missing.to_string().starts_with("no/such/file.toml: cannot read"),
            "{missing}"
        );
    }
}
