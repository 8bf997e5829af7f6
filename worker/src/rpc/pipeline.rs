//! How the links of a pipeline are opened: from a stage to the next, and the head's two ends.

use std::time::Duration;

use tokio::sync::mpsc;
use tonic::transport::Channel;
use tramontane_model::ids::Fence;
use tramontane_proto::LinkMessage;

use super::head::{OpenPipeline, Pipeline};
use super::link::{GrpcLink, Link, LinkFuture, LinkLost, LocalLink};
use super::stage::{LinkEnds, OpenLink};

/// Longest wait for the last stage's link to reach the head.
const PIPELINE_DEADLINE: Duration = Duration::from_secs(10);

/// From a stage to the next, or from the last to the head.
pub(super) struct Downstream {
    pub(super) fence: Fence,
    pub(super) from_stage: u32,
    pub(super) dim: u32,
    pub(super) ends: LinkEnds,
    pub(super) peer: String,
    /// None if the next stage is on this worker.
    pub(super) channel: Option<Channel>,
}

impl OpenLink for Downstream {
    fn open(&mut self) -> LinkFuture<'_, Result<Box<dyn Link>, LinkLost>> {
        Box::pin(async {
            let to_stage = self.from_stage + 1;
            Ok(match &self.channel {
                None => Box::new(LocalLink(self.ends.connect((self.fence, to_stage))?)) as Box<dyn Link>,
                Some(channel) => {
                    let (peer, fence) = (self.peer.clone(), self.fence);
                    Box::new(GrpcLink::open(
                        channel.clone(),
                        peer,
                        fence,
                        self.from_stage,
                        to_stage,
                        self.dim,
                    ))
                }
            })
        })
    }
}

/// The head's two ends of the pipeline.
pub(super) struct HeadEnds {
    pub(super) fence: Fence,
    pub(super) ends: LinkEnds,
    pub(super) results: mpsc::Receiver<mpsc::Receiver<LinkMessage>>,
}

impl OpenPipeline for HeadEnds {
    async fn open(&mut self) -> Result<Pipeline, LinkLost> {
        // Links of an earlier pipeline are of no use.
        while self.results.try_recv().is_ok() {}
        let mut first = Box::new(LocalLink(self.ends.connect((self.fence, 0))?));
        let results = tokio::time::timeout(PIPELINE_DEADLINE, self.results.recv());
        let results = tokio::select! {
            results = results => results,
            // A stage that has no link to the next one drops its own, and so back to here: the next worker may not have
            // heard of the placement yet.
            lost = first.lost() => return Err(lost),
        };
        match results {
            Ok(Some(results)) => Ok(Pipeline { first, results }),
            Ok(None) => Err(LinkLost("the head is being replaced".to_owned())),
            Err(_) => Err(LinkLost(format!(
                "the last stage did not connect within {PIPELINE_DEADLINE:?}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tramontane_model::ids::{Generation, ReplicaId};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pipeline_that_its_first_stage_drops_is_given_up_at_once() {
        let fence = Fence {
            replica: ReplicaId(1),
            generation: Generation(1),
        };
        let ends = LinkEnds::default();
        let mut stage = ends.open((fence, 0));
        let (_last_stage, results) = mpsc::channel(1);
        let mut head = HeadEnds { fence, ends, results };
        let started = Instant::now();
        let no_link_on = async { drop(stage.recv().await) };
        let (opened, ()) = tokio::join!(head.open(), no_link_on);
        assert!(opened.is_err());
        assert_eq!(started.elapsed(), Duration::ZERO, "nothing was waited for");
    }
}
