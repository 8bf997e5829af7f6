//! `tramontane demo`: a cluster of real processes on this machine, questions for it, and its end.
//!
//! **Invariant:** no process outlives the demo, however it ends: nodes stop when their standard input does.

mod ask;
mod nodes;
mod options;
mod ready;

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use tokio::task::JoinSet;
use tramontane_proto::net::Identity;

use crate::client::{Client, runtime};
use crate::layout::{Layout, Placement, Plan, model_dir};
use crate::process::Signals;
use crate::{embedded, status};
use nodes::{Nodes, RESTART_AFTER};
pub(crate) use options::DemoArgs;

/// Tokens that the KV cache holds at most: enough for many at once, on small machines too.
const KV_TOKENS_MAX: u32 = 1 << 16;
/// How long the planner waits for workers before it does with fewer, in milliseconds: they start at the same time.
const SETTLE_MS: u64 = 10_000;
/// What is asked where nothing is given.
const QUESTIONS: [&str; 4] = [
    "What is the capital of France?",
    "Translate 'gelb' from German to English.",
    "What is 30 + 6?",
    "Give the capital of Italy as JSON.",
];

pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    let plan = plan(args)?;
    let temporary = match &args.data_dir {
        Some(_) => None,
        None => Some(tempfile::tempdir().context("a temporary directory cannot be made")?),
    };
    let dir = match (&args.data_dir, &temporary) {
        (Some(dir), _) => dir.as_path(),
        (None, Some(temporary)) => temporary.path(),
        (None, None) => Path::new("."),
    };
    let runtime = runtime()?;
    let outcome = runtime.block_on(demo(args, plan, dir));
    // Whatever is left of the children ends with the runtime.
    drop(runtime);
    if outcome.is_err()
        && let Some(temporary) = temporary
    {
        eprintln!(
            "logs and configuration files are kept in {}",
            temporary.keep().display()
        );
    }
    outcome
}

/// What was asked for, but for the model.
fn plan(args: &DemoArgs) -> Result<Plan> {
    Ok(Plan {
        coordinators: args.coordinators,
        workers: args.devices()?,
        model_dir: args
            .model
            .as_deref()
            .map(model_dir)
            .transpose()?
            .unwrap_or_default(),
        model_name: None,
        http: args.http,
        placement: Placement {
            replicas: args.replicas,
            stages: Some(args.stages),
            expert_groups: Some(args.expert_groups),
            kv_tokens_max: Some(KV_TOKENS_MAX),
            settle_ms: Some(SETTLE_MS),
        },
    })
}

async fn demo(args: &DemoArgs, mut plan: Plan, dir: &Path) -> Result<()> {
    let mut signals = Signals::listen()?;
    if args.model.is_none() {
        plan.model_dir = embedded::unpack(dir)?;
        plan.model_name = Some(embedded::NAME.to_owned());
    }
    let layout = Layout::write(dir, &plan).await?;
    let mut nodes = Nodes::start(&layout)?;
    let mut outcome = tokio::select! {
        outcome = with_cluster(args, &layout, &mut nodes) => outcome,
        () = signals.next() => Err(anyhow!("interrupted")),
    };
    if outcome.is_ok() && args.serve {
        outcome = tokio::select! {
            outcome = stay_up(args, &mut nodes) => outcome,
            // To be interrupted is how a cluster that stays up ends.
            () = signals.next() => Ok(()),
        };
    }
    if outcome.is_err() {
        nodes.print_tails();
    }
    tokio::select! {
        () = nodes.stop() => {}
        () = signals.next() => eprintln!("interrupted again: nodes are killed"),
    }
    outcome
}

/// Waits, shows and asks.
async fn with_cluster(args: &DemoArgs, layout: &Layout, nodes: &mut Nodes) -> Result<()> {
    let clients = layout
        .coordinators
        .iter()
        .map(|coordinator| Client::new(&format!("http://{}", coordinator.http), Identity::Loopback));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let Some(first) = clients.first() else {
        bail!("a cluster needs a coordinator");
    };
    let everyone = ready::Everyone {
        clients: &clients,
        workers: layout.workers.len(),
        replicas: args.replicas,
        within: args.ready_within(),
    };
    let found = tokio::select! {
        found = everyone.wait() => found?,
        ended = nodes.next_end() => bail!("{ended} before the cluster was ready"),
    };
    status::print_status(&found);
    let questions: Vec<&str> = match (&args.prompts[..], args.serve) {
        ([], true) => Vec::new(),
        ([], false) => QUESTIONS.to_vec(),
        (prompts, _) => prompts.iter().map(String::as_str).collect(),
    };
    let model = first.model().await?;
    // Any coordinator answers: they take turns.
    for (question, client) in questions.iter().zip(clients.iter().cycle()) {
        tokio::select! {
            asked = ask::ask(client, &model, question) => asked?,
            ended = nodes.next_end() => bail!("{ended} while it was asked"),
        }
    }
    if args.serve {
        print_how_to_talk(layout, &model);
    }
    Ok(())
}

fn print_how_to_talk(layout: &Layout, model: &str) {
    println!();
    println!("The cluster is up. Interrupt (Ctrl-C) to stop it.");
    if let Some(coordinator) = layout.coordinators.first() {
        let url = format!("http://{}", coordinator.http);
        let question = QUESTIONS[0];
        println!(
            "  curl {url}/v1/chat/completions -H 'content-type: application/json' \
             -d '{{\"model\": \"{model}\", \"temperature\": 0, \"messages\": [{{\"role\": \"user\", \"content\": \"{question}\"}}]}}'"
        );
        println!("  openai.OpenAI(base_url=\"{url}/v1\", api_key=\"none\")");
        println!("  tramontane status --url {url}");
    }
    for coordinator in layout.coordinators.iter().skip(1) {
        println!(
            "  {} serves the same on http://{}",
            coordinator.name, coordinator.http
        );
    }
    println!("  files: {}", layout.dir.display());
}

/// Says which nodes end, and starts them again unless they are to stay dead; an error once none is left.
async fn stay_up(args: &DemoArgs, nodes: &mut Nodes) -> Result<()> {
    let mut ended = JoinSet::new();
    while nodes.any_left() || !ended.is_empty() {
        tokio::select! {
            end = nodes.next_end() => {
                if args.no_restart {
                    println!("{end}; the others go on");
                    continue;
                }
                println!("{end}; it is started again in {} s", RESTART_AFTER.as_secs());
                ended.spawn(async move {
                    tokio::time::sleep(RESTART_AFTER).await;
                    end.node()
                });
            }
            Some(node) = ended.join_next() => nodes.start_again(node?)?,
        }
    }
    bail!("no node is left")
}
