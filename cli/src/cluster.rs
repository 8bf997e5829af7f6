//! `tramontane cluster`: who of the coordinators takes part.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use tokio::time::{Instant, sleep};
use tramontane_proto::v1::{AddCoordinator, RemoveCoordinator};

use crate::ClientArgs;
use crate::admin::{Change, Operator};
use crate::client::runtime;
use crate::table;
use crate::view::Status;

/// How often progress is looked at.
const INTERVAL: Duration = Duration::from_millis(250);

#[derive(Args)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Add a coordinator that was started with join = true; it votes once it has caught up.
    Add {
        /// Its id, never used before in this cluster.
        id: u64,
        /// Its gRPC address, host:port.
        address: String,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Remove a coordinator for good; its id is never used again.
    Remove {
        /// Its id.
        id: u64,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show the coordinators as raft has them.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Args)]
struct Wait {
    /// Wait until the coordinator votes, or takes part no more.
    #[arg(long)]
    wait: bool,
    /// Longest wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "wait")]
    timeout: u64,
}

pub(crate) fn run(args: &ClusterArgs) -> Result<()> {
    let runtime = runtime()?;
    match &args.action {
        Action::Add {
            id,
            address,
            wait,
            client,
        } => runtime.block_on(async {
            let operator = Operator::new(client)?;
            let (id, address) = (*id, address.clone());
            operator
                .change(Change::Add(AddCoordinator { id, address }))
                .await?;
            println!("coordinator {id} is added; it votes once it has caught up");
            wait.until(&operator, id, "voter").await
        }),
        Action::Remove { id, wait, client } => runtime.block_on(async {
            let (operator, id) = (Operator::new(client)?, *id);
            operator.change(Change::Remove(RemoveCoordinator { id })).await?;
            println!("coordinator {id} is to take part no more; its id is never used again");
            wait.until(&operator, id, "removed").await
        }),
        Action::List { client } => runtime.block_on(async {
            print(&Operator::new(client)?.status().await?);
            Ok(())
        }),
    }
}

impl Wait {
    /// Waits until a coordinator has this part.
    async fn until(&self, operator: &Operator, id: u64, part: &str) -> Result<()> {
        if !self.wait {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_secs(self.timeout);
        let mut told = String::new();
        loop {
            let now = match operator.status().await {
                Ok(status) => {
                    let member = status.members.iter().find(|member| member.id == id);
                    member
                        .map_or("not listed", |member| member.part.as_str())
                        .to_owned()
                }
                // A leader that changes is no reason to give up.
                Err(error) => format!("not known: {error:#}"),
            };
            if now != told {
                println!("coordinator {id} is {now}");
            }
            if now == part {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "coordinator {id} is not {part} within {} s: it is {now}",
                    self.timeout
                );
            }
            told = now;
            sleep(INTERVAL).await;
        }
    }
}

fn print(status: &Status) {
    let mut rows = vec![["ID", "ADDRESS", "PART", "HEARD FROM", "LOG"].map(String::from)];
    for member in &status.members {
        let leads = status.leader == Some(member.id);
        rows.push([
            member.id.to_string(),
            member.address.clone(),
            if leads {
                format!("{}, leader", member.part)
            } else {
                member.part.clone()
            },
            if member.active { "yes" } else { "no" }.to_owned(),
            member.matched.to_string(),
        ]);
    }
    table::print(&rows);
}
