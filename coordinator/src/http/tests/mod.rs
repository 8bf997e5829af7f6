//! Whole requests through the router, against heads in memory and the miniature's tokenizer.
//!
//! Token ids and texts are those of the miniature's records, made by independent code.

mod bad_input;
mod chat;
mod choices;
mod completions;
mod connections;
mod faults;
mod idempotency;
mod mistral;
mod openapi;
mod prompt_scores;
mod reasoning;
mod responses;
mod routes;
mod shutdown;
mod structured;
mod tokens;

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;
use tramontane_model::ids::Fence;
use tramontane_model::sampling::{SampledToken, SamplingParams};

use super::{Api, ApiLimits, App, ClusterAdmin, ClusterAdminError, ModelCard, router};
use crate::gateway::scripted::{Act, Script, ScriptedHeads, always, fence, serving};
use crate::gateway::{Gateway, GatewayOptions, Routes};
use crate::text::Tokenizer;

const MODEL: &str = "mini-large-3";
const MAX_CONTEXT: u32 = 4096;

/// "Tell me the capital of Vietnam." without `<s>`, as recorded.
const QUESTION: [u32; 12] = [
    1084, 1522, 1639, 1278, 2735, 3235, 1307, 1581, 3293, 1110, 1325, 1046,
];
/// "The capital of Vietnam is Hanoi." and `</s>`, as recorded.
const ANSWER: [u32; 14] = [
    1784, 2735, 3235, 1307, 1581, 3293, 1110, 1325, 1395, 1443, 3112, 1105, 1046, 2,
];
const ANSWER_TEXT: &str = "The capital of Vietnam is Hanoi.";

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/mini-large-3/tekken.json");
    Arc::new(Tokenizer::load(&path, 8192).unwrap())
});

/// A leader that answers, or none.
struct Leader(bool);

impl ClusterAdmin for Leader {
    fn status(&self) -> BoxFuture<'_, Result<Bytes, ClusterAdminError>> {
        let answer = match self.0 {
            true => Ok(cluster_status().to_string().into()),
            false => Err(ClusterAdminError::NoLeader("an election is on".to_owned())),
        };
        async move { answer }.boxed()
    }

    fn replan(&self) -> BoxFuture<'_, Result<Fence, ClusterAdminError>> {
        let answer = match self.0 {
            true => Ok(fence(8)),
            false => Err(ClusterAdminError::Refused("no worker has joined".to_owned())),
        };
        async move { answer }.boxed()
    }
}

/// A cluster's status, as far as this side reads it.
fn cluster_status() -> Value {
    json!({
        "nodes": [
            {"id": "coordinator-1", "role": "leader"},
            {"id": "w1", "role": "worker", "devices": [{"index": 0, "held_bytes": 4096, "loading": {
                "loaded_bytes": 3, "total_bytes": 9, "bytes_per_second": 2, "seconds_left": 3,
            }}]},
        ],
        "replicas": [{
            "id": 1,
            "generation": 7,
            "load": {"running": 2, "waiting": 1, "kv_blocks_used": 3, "kv_blocks_total": 64},
        }],
    })
}

struct World {
    heads: Arc<ScriptedHeads>,
    routes: watch::Sender<Arc<Routes>>,
    app: App,
}

struct Setup {
    script: Script,
    acts: Vec<Act>,
    options: GatewayOptions,
    limits: ApiLimits,
    leader: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            script: always(&ANSWER),
            acts: Vec::new(),
            options: GatewayOptions::default(),
            limits: ApiLimits::default(),
            leader: true,
        }
    }
}

impl Setup {
    fn build(self) -> World {
        let heads = ScriptedHeads::new(self.script, self.acts);
        let (routes, routes_rx) = watch::channel(Arc::new(serving(1)));
        let gateway = Gateway::new(routes_rx, heads.clone(), self.options);
        let model = ModelCard {
            name: MODEL.to_owned(),
            max_context: MAX_CONTEXT,
            created: 1_700_000_000,
        };
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let leader = Arc::new(Leader(self.leader));
        let api = Api::new(
            model,
            Arc::clone(&TOKENIZER),
            gateway,
            leader,
            metrics,
            self.limits,
        );
        World {
            heads,
            routes,
            app: router(api),
        }
    }
}

fn world() -> World {
    Setup::default().build()
}

/// A world whose model says this.
fn saying(tokens: &[u32]) -> World {
    Setup {
        script: always(tokens),
        ..Setup::default()
    }
    .build()
}

/// A world whose model says these tokens with these log-probabilities.
fn sampling(tokens: Vec<SampledToken>) -> World {
    Setup {
        script: Arc::new(move |_| tokens.clone()),
        ..Setup::default()
    }
    .build()
}

#[derive(Debug)]
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    fn request_id(&self) -> &str {
        self.headers["x-request-id"].to_str().unwrap()
    }

    /// The body with `id` and `created` checked and put to fixed values.
    fn normal(&self, prefix: &str) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{:?}", self.body);
        normal(self.json(), prefix, self.request_id())
    }

    /// The data of every event of a stream.
    fn events(&self) -> Vec<String> {
        assert_eq!(self.headers["content-type"], "text/event-stream");
        let text = std::str::from_utf8(&self.body).unwrap();
        let events = text.split("\n\n").filter(|event| !event.is_empty());
        events
            .map(|event| {
                event
                    .strip_prefix("data: ")
                    .unwrap_or_else(|| panic!("{event:?}"))
                    .to_owned()
            })
            .collect()
    }

    /// The chunks of a stream that ended well.
    fn chunks(&self, prefix: &str) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        let chunk = |event: String| normal(serde_json::from_str(&event).unwrap(), prefix, self.request_id());
        events.into_iter().map(chunk).collect()
    }
}

fn normal(mut body: Value, prefix: &str, request_id: &str) -> Value {
    assert_eq!(body["id"], format!("{prefix}{request_id}"));
    assert!(
        body["created"]
            .as_u64()
            .is_some_and(|seconds| seconds > 1_700_000_000)
    );
    body["id"] = json!("ID");
    body["created"] = json!(0);
    body
}

impl World {
    async fn send(&self, method: Method, path: &str, body: impl Into<Body>) -> Reply {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(body.into())
            .unwrap();
        self.ask(request).await
    }

    async fn ask(&self, request: Request<Body>) -> Reply {
        let response = self.app.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body: to_bytes(body, 64 << 20).await.unwrap(),
        }
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, Body::empty()).await
    }

    async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, body.to_string()).await
    }

    async fn complete(&self, body: Value) -> Reply {
        self.post("/v1/completions", with_model(body)).await
    }

    async fn chat(&self, body: Value) -> Reply {
        self.post("/v1/chat/completions", with_model(body)).await
    }

    async fn all_closed(&self) {
        let mut open = self.heads.open();
        let closed = open.wait_for(|open| *open == 0);
        tokio::time::timeout(Duration::from_secs(20), closed)
            .await
            .unwrap()
            .unwrap();
    }
}

fn with_model(mut body: Value) -> Value {
    let object = body.as_object_mut().unwrap();
    object.entry("model").or_insert(json!(MODEL));
    body
}
