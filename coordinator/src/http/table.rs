//! The table of routes: what is served, as one list that the OpenAPI document is checked against.

use std::sync::Arc;

use axum::handler::Handler;
use axum::http::Method;
use axum::{Router, routing};

use super::Api;

/// Routes, each remembered by method and path.
#[derive(Default)]
pub(super) struct Routes {
    router: Router<Arc<Api>>,
    listed: Vec<(Method, &'static str)>,
}

impl Routes {
    /// No routes.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Answers GET.
    pub(super) fn get<H: Handler<T, Arc<Api>>, T: 'static>(mut self, path: &'static str, handler: H) -> Self {
        self.listed.push((Method::GET, path));
        self.router = self.router.route(path, routing::get(handler));
        self
    }

    /// Answers POST.
    pub(super) fn post<H: Handler<T, Arc<Api>>, T: 'static>(
        mut self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.listed.push((Method::POST, path));
        self.router = self.router.route(path, routing::post(handler));
        self
    }

    /// Both.
    pub(super) fn merge(mut self, other: Self) -> Self {
        self.listed.extend(other.listed);
        self.router = self.router.merge(other.router);
        self
    }

    /// What is served, in the order in which it was added.
    #[cfg(test)]
    pub(super) fn listed(&self) -> &[(Method, &'static str)] {
        &self.listed
    }

    /// For axum.
    pub(super) fn into_router(self) -> Router<Arc<Api>> {
        self.router
    }
}
