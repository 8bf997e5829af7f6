//! `GET /version`: the version of this server.

use axum::Json;
use serde::Serialize;

use super::table::Routes;

pub(super) fn routes() -> Routes {
    Routes::new().get("/version", version)
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

async fn version() -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION"),
    })
}
