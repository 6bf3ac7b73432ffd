//! `/metrics`, `/healthz`, `/readyz`.

use std::{convert::Infallible, fmt::Write as _, io, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

use super::Metrics;
use crate::{agent::board::Board, source::node};

/// Connections at a time; more wait.
const CONNECTIONS: usize = 32;
/// A client that says nothing for so long is hung up on.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers until it is dropped.
pub struct Server {
    listener: TcpListener,
    metrics: Arc<Metrics>,
    board: Arc<Board>,
}

impl Server {
    /// Takes over a listening socket. Call within a tokio runtime.
    ///
    /// # Errors
    /// When it cannot be polled.
    pub fn new(
        listener: std::net::TcpListener,
        metrics: Metrics,
        board: Arc<Board>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: TcpListener::from_std(listener)?,
            metrics: Arc::new(metrics),
            board,
        })
    }

    /// Serves for ever.
    pub async fn run(self) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let this = Arc::new(self);
        loop {
            let Ok(place) = room.clone().acquire_owned().await else {
                return;
            };
            let Ok((stream, _)) = this.listener.accept().await else {
                // Out of descriptors, most likely: others will be freed.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let this = this.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| this.answer(request));
                // One answer each: a client that holds the connection, or
                // takes the answer byte by byte, would keep its place.
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                match tokio::time::timeout(PATIENCE * 3, served).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "a metrics connection ended"),
                    Err(_) => tracing::debug!("a metrics client was too slow"),
                }
                drop(place);
            });
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (status, body) = if request.method() == Method::GET {
            self.page(request.uri().path()).await
        } else {
            (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned())
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Ok(response)
    }

    async fn page(&self, path: &str) -> (StatusCode, String) {
        match path {
            "/metrics" => self.scrape().await,
            "/healthz" => health(self.board.stuck(node::boot_time().unwrap_or(0))),
            "/readyz" => readiness(&self.board.facts().not_ready()),
            _ => (
                StatusCode::NOT_FOUND,
                "there are /metrics, /healthz and /readyz\n".to_owned(),
            ),
        }
    }

    /// On a thread of its own: it walks maps.
    async fn scrape(&self) -> (StatusCode, String) {
        self.board.refresh().await;
        let metrics = self.metrics.clone();
        match tokio::task::spawn_blocking(move || metrics.text()).await {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

fn health(stuck: Option<&str>) -> (StatusCode, String) {
    match stuck {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(name) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the {name} loop hangs; enforcement goes on, restart the agent\n"),
        ),
    }
}

fn readiness(reasons: &[String]) -> (StatusCode, String) {
    if reasons.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let mut text = String::new();
    for reason in reasons {
        let _ = writeln!(text, "{}", reason.trim_end());
    }
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unready_says_why() {
        assert_eq!(readiness(&[]).0, StatusCode::OK);
        let (status, text) = readiness(&["no policy".to_owned()]);
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "no policy\n");
        assert_eq!(health(Some("event")).0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
