//! Serves a stand-in in a pod.

use std::sync::Arc;
use std::time::Instant;

use rustls::ServerConfig;

use super::http::{Fault, LOOK, Request, StandIn, Step, step};
use crate::support::pod::Pod;
use crate::support::serve::Server;
use crate::support::tls;

/// A stand-in that listens; it is killed when this is dropped.
pub struct Serving<S: StandIn> {
    stand_in: Arc<S>,
    _server: Server,
}

impl<S: StandIn> Serving<S> {
    /// Serves one request a connection at `port` of `pod`.
    pub fn start(pod: &Pod, port: u16, stand_in: &Arc<S>) -> Self {
        Self::serve(pod, port, stand_in, None)
    }

    /// The same over TLS.
    pub fn start_tls(pod: &Pod, port: u16, stand_in: &Arc<S>, config: Arc<ServerConfig>) -> Self {
        Self::serve(pod, port, stand_in, Some(config))
    }

    fn serve(pod: &Pod, port: u16, stand_in: &Arc<S>, config: Option<Arc<ServerConfig>>) -> Self {
        stand_in.faults().set(Fault::None);
        let serving = Arc::clone(stand_in);
        let server = pod.serve(port, move |mut connection| {
            if let Some(config) = &config {
                let Ok((secured, _)) = tls::server(config, connection) else { return };
                connection = secured;
            }
            let Some(request) = connection.request() else { return };
            let request = Request::new(request.method(), request.target(), request.headers.clone());
            let mut exchange = serving.faults().begin(request);
            let began = Instant::now();
            while let Some(next) = step(&*serving, &mut exchange, began.elapsed()) {
                let sent = match &next {
                    Step::Wait => {
                        std::thread::sleep(LOOK);
                        Ok(())
                    }
                    Step::Send(bytes) | Step::Finish(bytes) => connection.try_send(bytes),
                };
                if sent.is_err() || matches!(next, Step::Finish(_)) {
                    return;
                }
            }
        });
        Self { stand_in: Arc::clone(stand_in), _server: server }
    }
}

impl<S: StandIn> Drop for Serving<S> {
    fn drop(&mut self) {
        // The connections that are open end too.
        self.stand_in.faults().set(Fault::HangsUp);
    }
}
