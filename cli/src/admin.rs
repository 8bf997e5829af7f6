//! Operators' changes: the leader is found through any coordinator's HTTP address and asked over gRPC.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::time::timeout;
use tramontane_proto::net::{Identity, Traffic, channel};
use tramontane_proto::v1::ChangeRequest;
use tramontane_proto::v1::admin_client::AdminClient;
pub(crate) use tramontane_proto::v1::change_request::Change;

use crate::ClientArgs;
use crate::client::Client;
use crate::view::Status;

/// How a coordinator that does not lead names the one that does.
const LEADER_ADDRESS_KEY: &str = "tramontane-leader-address";
/// Most coordinators that are asked one after the other.
const MAX_REDIRECTS: usize = 4;
/// Longest wait for one coordinator's answer; longer than it waits for the leader's.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// A cluster and who asks.
pub(crate) struct Operator {
    client: Client,
    identity: Identity,
}

impl Operator {
    pub(crate) fn new(args: &ClientArgs) -> Result<Self> {
        let identity = args.tls.identity()?;
        let client = Client::new(&args.url, identity.clone())?;
        Ok(Self { client, identity })
    }

    /// The cluster as its leader sees it.
    pub(crate) async fn status(&self) -> Result<Status> {
        let text = self.client.get("/cluster/status").await?;
        serde_json::from_str(&text).context("the status is not what this program expects")
    }

    /// Has the leader make a change; returns once it is committed.
    pub(crate) async fn change(&self, change: Change) -> Result<()> {
        let status = self.status().await?;
        let coordinators = || status.nodes.iter().filter(|node| node.role != "worker");
        let leader = coordinators().find(|node| node.role == "leader");
        // Any coordinator passes it on, so that one may do where no leader is known.
        let first = leader.or_else(|| coordinators().next());
        let mut address = first.context("the status names no coordinator")?.address.clone();
        for _ in 0..MAX_REDIRECTS {
            let channel = channel(&address, &self.identity, Traffic::Control)?;
            let request = ChangeRequest {
                forwarded: false,
                change: Some(change.clone()),
            };
            let mut client = AdminClient::new(channel);
            let answer = timeout(ANSWER_DEADLINE, client.change(request)).await;
            let answer =
                answer.with_context(|| format!("{address} did not answer within {ANSWER_DEADLINE:?}"))?;
            let Err(refusal) = answer else {
                return Ok(());
            };
            let leader = refusal.metadata().get(LEADER_ADDRESS_KEY);
            match leader.and_then(|leader| leader.to_str().ok()) {
                Some(leader) if !leader.is_empty() && leader != address => leader.clone_into(&mut address),
                Some(_) | None => return Err(anyhow!("{}", refusal.message())),
            }
        }
        bail!("the coordinators name one another as the leader; try again")
    }
}
