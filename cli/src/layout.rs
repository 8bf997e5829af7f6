//! The files of a cluster on this machine, from which its nodes start:
//!
//! ```text
//! DIR/join-token                what lets workers in, made once
//! DIR/coordinator-1.toml, ...   a configuration file for each node
//! DIR/coordinator-1/, ...       the coordinators' logs of decisions; kept, they keep the placement
//! DIR/coordinator-1.log, ...    what each node of a demo said
//! ```
//!
//! Ports are chosen anew every time; names and numbers stay. Nothing is started here.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use tramontane_model::layout::Layout as Files;

use crate::ports::Ports;

/// Random bytes in a join token.
const TOKEN_BYTES: usize = 32;
const TOKEN_FILE: &str = "join-token";

/// What a cluster on this machine is to be.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) coordinators: u32,
    /// The devices of each worker: bytes of memory, or what the adapter is known to have.
    pub(crate) workers: Vec<Vec<Option<u64>>>,
    pub(crate) model_dir: PathBuf,
    /// Its name in the API; absent: its folder's.
    pub(crate) model_name: Option<String>,
    /// Where the first coordinator serves HTTP; absent, or with port 0: on a free port.
    pub(crate) http: Option<SocketAddr>,
    pub(crate) placement: Placement,
}

/// What the planner is asked for; what is absent keeps its default.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Placement {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replicas: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stages: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expert_groups: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kv_tokens_max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) settle_ms: Option<u64>,
}

/// The files, written.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    pub(crate) coordinators: Vec<CoordinatorFiles>,
    pub(crate) workers: Vec<WorkerFiles>,
}

#[derive(Clone, Debug)]
pub(crate) struct CoordinatorFiles {
    pub(crate) name: String,
    pub(crate) http: SocketAddr,
    pub(crate) config: PathBuf,
}

#[derive(Clone, Debug)]
pub(crate) struct WorkerFiles {
    pub(crate) name: String,
    pub(crate) config: PathBuf,
}

#[derive(Serialize)]
struct CoordinatorConfig<'a> {
    id: u64,
    cluster: &'static str,
    data_dir: &'a str,
    join_token_file: &'static str,
    initial_members: &'a [Member],
    http: Listen,
    rpc: Listen,
    model: Model<'a>,
    placement: Placement,
}

#[derive(Serialize)]
struct WorkerConfig<'a> {
    name: &'a str,
    coordinators: Vec<&'a str>,
    join_token_file: &'static str,
    rpc: Listen,
    model: Model<'a>,
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Member {
    id: u64,
    address: String,
}

#[derive(Serialize)]
struct Listen {
    listen: String,
}

#[derive(Serialize)]
struct Model<'a> {
    dir: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct Device {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
}

impl Layout {
    /// Chooses ports and writes the files into `dir`.
    pub(crate) async fn write(dir: &Path, plan: &Plan) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = std::path::absolute(dir).with_context(|| format!("{} has no full path", dir.display()))?;
        keep_token(&dir.join(TOKEN_FILE))?;
        let mut ports = Ports::default();
        let chosen = plan.http.filter(|http| http.port() != 0);
        if let Some(http) = chosen {
            ports.keep(http.port());
        }
        let mut https = Vec::new();
        let mut members = Vec::new();
        for id in 1..=u64::from(plan.coordinators) {
            https.push(match (id, chosen) {
                (1, Some(http)) => http,
                (_, _) => ports.free().await?,
            });
            let address = ports.free().await?.to_string();
            members.push(Member { id, address });
        }
        let coordinators = members.iter().zip(https);
        let coordinators = coordinators.map(|(member, http)| coordinator(&dir, plan, &members, member, http));
        let coordinators = coordinators.collect::<Result<_>>()?;
        let workers = plan.workers.iter().enumerate();
        let workers = workers.map(|(index, devices)| worker(&dir, plan, &members, index + 1, devices));
        Ok(Self {
            coordinators,
            workers: workers.collect::<Result<_>>()?,
            dir,
        })
    }
}

fn coordinator(
    dir: &Path,
    plan: &Plan,
    members: &[Member],
    member: &Member,
    http: SocketAddr,
) -> Result<CoordinatorFiles> {
    let name = format!("coordinator-{}", member.id);
    let file = CoordinatorConfig {
        id: member.id,
        cluster: "local",
        data_dir: &name,
        join_token_file: TOKEN_FILE,
        initial_members: members,
        http: Listen {
            listen: http.to_string(),
        },
        rpc: Listen {
            listen: member.address.clone(),
        },
        model: Model {
            dir: utf8(&plan.model_dir)?,
            name: plan.model_name.as_deref(),
        },
        placement: plan.placement,
    };
    Ok(CoordinatorFiles {
        config: write_config(dir, &name, &file)?,
        name,
        http,
    })
}

fn worker(
    dir: &Path,
    plan: &Plan,
    members: &[Member],
    number: usize,
    devices: &[Option<u64>],
) -> Result<WorkerFiles> {
    let name = format!("worker-{number}");
    let file = WorkerConfig {
        name: &name,
        coordinators: members.iter().map(|member| member.address.as_str()).collect(),
        join_token_file: TOKEN_FILE,
        // The worker tells the cluster which port it got.
        rpc: Listen {
            listen: "127.0.0.1:0".to_owned(),
        },
        model: Model {
            dir: utf8(&plan.model_dir)?,
            name: None,
        },
        devices: devices
            .iter()
            .map(|&memory_bytes| Device { memory_bytes })
            .collect(),
    };
    Ok(WorkerFiles {
        config: write_config(dir, &name, &file)?,
        name,
    })
}

fn write_config(dir: &Path, name: &str, config: &impl Serialize) -> Result<PathBuf> {
    let path = dir.join(format!("{name}.toml"));
    let text = toml::to_string(config).with_context(|| format!("the configuration of {name}"))?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn utf8(path: &Path) -> Result<&str> {
    let text = path.to_str();
    text.with_context(|| format!("{} is not UTF-8, which configuration files are", path.display()))
}

/// Makes a token unless there is one: workers of an earlier start may hold it.
fn keep_token(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let mut random = [0; TOKEN_BYTES];
    getrandom::fill(&mut random).map_err(|error| anyhow!("no randomness: {error}"))?;
    let mut text = String::new();
    for byte in random {
        write!(text, "{byte:02x}")?;
    }
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Checks a checkpoint's directory and makes its path a full one, as configuration files elsewhere need it.
pub(crate) fn model_dir(dir: &Path) -> Result<PathBuf> {
    let is_file = |layout: Files| dir.join(layout.params_file()).is_file();
    if !is_file(Files::Consolidated) && !is_file(Files::HuggingFace) {
        bail!(
            "--model {}: there is no params.json and no config.json; it must be a checkpoint's directory",
            dir.display()
        );
    }
    std::path::absolute(dir).with_context(|| format!("{} has no full path", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(model: &Path) -> Plan {
        Plan {
            coordinators: 3,
            workers: vec![vec![Some(1 << 29), None], vec![Some(7)]],
            model_dir: model.to_owned(),
            model_name: Some("mini".to_owned()),
            http: Some(SocketAddr::from(([127, 0, 0, 1], 8080))),
            placement: Placement {
                replicas: Some(3),
                stages: Some(2),
                kv_tokens_max: Some(65_536),
                ..Placement::default()
            },
        }
    }

    #[tokio::test]
    async fn nodes_read_what_is_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::write(dir.path(), &plan(dir.path()))
            .await
            .expect("writes");
        for (index, files) in layout.coordinators.iter().enumerate() {
            let config =
                tramontane_coordinator::config::CoordinatorConfig::read(&files.config).expect("valid");
            assert_eq!(config.id.0, index as u64 + 1);
            assert_eq!(config.http_listen, files.http);
            assert_eq!(config.initial_members.len(), 3);
            assert_eq!(config.placement.replicas, Some(3));
            assert_eq!(config.placement.stages, Some(2));
            assert_eq!(config.placement.expert_groups, None);
            assert_eq!(config.placement.kv_tokens_max, 65_536);
            assert_eq!(config.model_name, "mini");
        }
        assert_eq!(layout.coordinators[0].http.port(), 8080);
        let config = tramontane_worker::config::WorkerConfig::read(&layout.workers[0].config).expect("valid");
        assert_eq!(config.name.as_str(), "worker-1");
        assert_eq!(config.coordinators.len(), 3);
        let memory: Vec<_> = config.devices.iter().map(|device| device.memory_bytes).collect();
        assert_eq!(memory, [Some(1 << 29), None]);
    }

    #[tokio::test]
    async fn the_token_stays_and_is_nobody_elses() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let token = dir.path().join(TOKEN_FILE);
        Layout::write(dir.path(), &plan(dir.path()))
            .await
            .expect("writes");
        let first = std::fs::read(&token).expect("a token");
        Layout::write(dir.path(), &plan(dir.path()))
            .await
            .expect("writes");
        assert_eq!(std::fs::read(&token).expect("a token"), first);
        assert_eq!(first.len(), 2 * TOKEN_BYTES);
        let mode = std::fs::metadata(&token).expect("a token").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_folder_without_a_checkpoint_is_named() {
        let error = model_dir(Path::new("/nowhere")).expect_err("refused").to_string();
        assert!(
            error.contains("/nowhere") && error.contains("params.json"),
            "{error}"
        );
    }
}
