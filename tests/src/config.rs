//! Configuration files of a cluster on this machine.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use tramontane_proto::net::{Identity, TlsFiles};

use crate::fixtures::mini;

/// The model's name in requests.
pub const MODEL: &str = "mini-large-3";
/// Ports that are tried: below those that systems give to outgoing connections.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Coordinators: 1, 3 or 5.
    pub coordinators: u64,
    /// For each worker the memory of its devices, in bytes.
    pub workers: Vec<Vec<u64>>,
    /// The checkpoint's directory.
    pub model: PathBuf,
    /// Further lines of every coordinator's file, as `placement.stages = 2`.
    pub settings: Vec<String>,
    /// A folder of certificates; with it each node has an address of its own.
    pub certificates: Option<PathBuf>,
    /// Workers have no files of the model: each fetches what it is given to a folder of its own.
    pub fetch: bool,
    /// What every process logs, as JSON, in the form of TRAMONTANE_LOG; else what it logs by itself.
    pub log: Option<String>,
}

/// Memory that is more than the miniature ever needs.
pub const ROOMY: u64 = 512 << 20;

impl Plan {
    /// One coordinator and workers of one roomy device each, which serve the miniature.
    pub fn new(workers: usize) -> Self {
        Self {
            coordinators: 1,
            workers: vec![vec![ROOMY]; workers],
            model: mini(),
            settings: vec!["placement.kv_tokens_max = 32768".to_owned()],
            certificates: None,
            fetch: false,
            log: None,
        }
    }

    /// The same with so many coordinators.
    #[must_use]
    pub fn coordinators(self, coordinators: u64) -> Self {
        Self { coordinators, ..self }
    }

    /// The same with other devices.
    #[must_use]
    pub fn devices(self, workers: &[&[u64]]) -> Self {
        Self {
            workers: workers.iter().map(|devices| devices.to_vec()).collect(),
            ..self
        }
    }

    /// The same with a wish for so many stages and expert groups, which is waited for.
    #[must_use]
    pub fn shape(self, stages: u32, expert_groups: u32) -> Self {
        self.set(&format!("placement.stages = {stages}"))
            .set(&format!("placement.expert_groups = {expert_groups}"))
            .set("placement.settle_ms = 60000")
    }

    /// The same with a line more in every coordinator's file; a line of the same key goes.
    #[must_use]
    pub fn set(mut self, line: &str) -> Self {
        let key = |line: &str| line.split('=').next().map(str::trim).map(str::to_owned);
        self.settings.retain(|other| key(other) != key(line));
        self.settings.push(line.to_owned());
        self
    }

    /// The same with workers that fetch what they hold.
    #[must_use]
    pub fn fetching(self) -> Self {
        Self { fetch: true, ..self }
    }

    /// The same with logs of this, as JSON.
    #[must_use]
    pub fn logged(self, what: &str) -> Self {
        Self {
            log: Some(what.to_owned()),
            ..self
        }
    }

    /// How clients show who they are.
    pub fn client_identity(&self) -> Identity {
        let Some(certificates) = &self.certificates else {
            return Identity::Loopback;
        };
        let files = TlsFiles {
            ca: certificates.join("ca.pem"),
            certificate: certificates.join("operator.pem"),
            key: certificates.join("operator.key"),
        };
        Identity::from_config(Some(&files)).expect("the operator's certificate")
    }

    fn host(&self, role: u8, number: usize) -> IpAddr {
        let last = u8::try_from(number).expect("few nodes");
        match self.certificates {
            Some(_) => Ipv4Addr::new(127, 0, role, last).into(),
            None => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// Where coordinator number `number` (from 1) and worker number `number` listen when they have certificates.
    pub fn coordinator_host(&self, number: usize) -> IpAddr {
        self.host(1, number)
    }

    /// The same of a worker.
    pub fn worker_host(&self, number: usize) -> IpAddr {
        self.host(2, number)
    }
}

/// Addresses of one coordinator.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// HTTP.
    pub http: SocketAddr,
    /// gRPC.
    pub rpc: SocketAddr,
}

/// Gives out ports that were free a moment ago, each once.
#[derive(Debug, Default)]
pub struct Ports(BTreeSet<u16>);

impl Ports {
    /// An address of `host`.
    pub fn free(&mut self, host: IpAddr) -> SocketAddr {
        loop {
            let random = getrandom::u32().expect("randomness");
            let offset = random % u32::from(PORTS.end - PORTS.start);
            let port = PORTS.start + u16::try_from(offset).expect("a port");
            let address = SocketAddr::from((host, port));
            if self.0.insert(port) && TcpListener::bind(address).is_ok() {
                return address;
            }
        }
    }
}

/// The addresses of every coordinator of a plan.
pub fn addresses(plan: &Plan) -> Vec<Addresses> {
    let mut ports = Ports::default();
    let count = usize::try_from(plan.coordinators).expect("few coordinators");
    let each = (1..=count).map(|number| {
        let host = plan.coordinator_host(number);
        Addresses {
            http: ports.free(host),
            rpc: ports.free(host),
        }
    });
    each.collect()
}

/// Writes the token that lets workers in.
pub fn write_token(dir: &Path) {
    std::fs::write(dir.join("join-token"), "a-join-token-of-the-tests").expect("writes");
}

/// Writes the file of coordinator number `number`, from 1.
pub fn write_coordinator(dir: &Path, plan: &Plan, all: &[Addresses], number: usize) -> PathBuf {
    let name = format!("coordinator-{number}");
    let Addresses { http, rpc } = all[number - 1];
    let model = &plan.model;
    let mut text = format!(
        "id = {number}\ncluster = \"tests\"\ndata_dir = {name:?}\njoin_token_file = \"join-token\"\n\
         http.listen = \"{http}\"\nrpc.listen = \"{rpc}\"\nmodel = {{ dir = {model:?}, name = {MODEL:?} }}\n"
    );
    let first = usize::try_from(plan.coordinators).expect("few coordinators");
    if number > first {
        text += "join = true\n";
    }
    let members = all[..first].iter().zip(1..);
    let members = members.map(|(member, id)| format!("{{ id = {id}, address = \"{}\" }}", member.rpc));
    let members: Vec<String> = members.collect();
    text += &format!("initial_members = [{}]\n", members.join(", "));
    text += &tls(plan, &name);
    for line in &plan.settings {
        text += &format!("{line}\n");
    }
    write(dir, &name, &text)
}

/// Where worker number `number` puts what it fetches.
pub fn fetched_dir(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("worker-{number}-model"))
}

/// Writes the file of worker number `number`, from 1, whose metrics are served at `metrics`.
pub fn write_worker(
    dir: &Path,
    plan: &Plan,
    all: &[Addresses],
    number: usize,
    metrics: SocketAddr,
) -> PathBuf {
    let name = format!("worker-{number}");
    let coordinators: Vec<String> = all.iter().map(|one| one.rpc.to_string()).collect();
    let model = match plan.fetch {
        true => fetched_dir(dir, number),
        false => plan.model.clone(),
    };
    let fetch = plan.fetch;
    let listen = SocketAddr::from((plan.worker_host(number), 0));
    let mut text = format!(
        "name = {name:?}\ncoordinators = {coordinators:?}\njoin_token_file = \"join-token\"\n\
         rpc.listen = \"{listen}\"\nmetrics.listen = \"{metrics}\"\nmodel = {{ dir = {model:?}, fetch = {fetch} }}\n"
    );
    text += &tls(plan, &name);
    for memory in &plan.workers[number - 1] {
        let _ = write!(text, "[[devices]]\nmemory_bytes = {memory}\n");
    }
    write(dir, &name, &text)
}

fn tls(plan: &Plan, name: &str) -> String {
    let Some(certificates) = &plan.certificates else {
        return String::new();
    };
    let file = |file: &str| certificates.join(file);
    format!(
        "tls = {{ ca = {:?}, certificate = {:?}, key = {:?} }}\n",
        file("ca.pem"),
        file(&format!("{name}.pem")),
        file(&format!("{name}.key"))
    )
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(format!("{name}.toml"));
    std::fs::write(&path, text).expect("writes");
    path
}
