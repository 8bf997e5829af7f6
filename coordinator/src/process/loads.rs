//! Tells this coordinator's gateway what the schedulers are doing, as the leader knows it from the workers' reports.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::gateway::{Gateway, Routes};
use crate::rpc::admin::Leader;

/// Asks once in each `pause` while there is a choice between replicas, until `stop`. Where the leader does not answer,
/// the gateway goes on with what it knows of its own requests.
pub(super) async fn run(
    leader: Leader,
    mut routes: watch::Receiver<Arc<Routes>>,
    gateway: Gateway,
    pause: Duration,
    stop: CancellationToken,
) {
    let heard = async {
        while routes.wait_for(|routes| routes.serving() > 1).await.is_ok() {
            match leader.loads().await {
                Ok(loads) => gateway.heard(&loads),
                Err(error) => {
                    tracing::debug!(%error, "the leader does not say what the replicas are doing");
                    gateway.heard(&[]);
                }
            }
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = heard => {}
    }
}
