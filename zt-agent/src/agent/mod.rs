//! The running agent, all of it at a glance.
//!
//! | thread | does | file |
//! |---|---|---|
//! | `reconcile` | sources → kernel; owns the store | `driver`, `reconcile`, `enforce`, `guard` |
//! | `events` | kernel → audit trail → observers | `events` |
//! | `cut` | ends connections that are no longer allowed | [`crate::revoke`] |
//! | main | metrics, admin socket, signals; the cluster | here, `cluster` |
//!
//! They share the [`board`]. When the agent ends, however it ends, everything
//! stays pinned and enforcement goes on.

pub mod attachments;
mod begin;
pub mod board;
mod cluster;
mod coverage;
pub mod driver;
mod enforce;
pub mod enrolments;
mod events;
mod guard;
mod kernel_log;
pub mod lock;
mod macs;
pub mod model;
mod reconcile;
mod start;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, atomic::Ordering},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
};
use zt_common::version::Generation;

use self::{
    begin::{Begun, Enforcing},
    board::Board,
    events::Events,
    guard::Guard,
    lock::LockError,
    reconcile::Reconciler,
};
use crate::{
    admin,
    audit::{AuditError, KernelState, Trail, TrailConfig},
    document::Config,
    kernel::{KernelError, load::LOG_OFF},
    metrics::{self, Metrics},
    netlink,
    source::{node, watch::Watched},
};

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(
        "{0}\nnothing was enforced before, and nothing is now; repair the files and start again"
    )]
    NothingToEnforce(String),
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    #[error(
        "cannot listen on {address}: {error}; choose another address with `listen` in the configuration"
    )]
    Listen {
        address: SocketAddr,
        error: io::Error,
    },
    #[error("the changes of this node's interfaces cannot be followed: {0}")]
    Netlink(netlink::NetlinkError),
    #[error(
        "the configuration says `identity: kubernetes`, and this agent was built without it; build it with the feature `kubernetes`"
    )]
    NoKubernetes,
    #[error("the {0} thread ended by itself; enforcement goes on; see the log")]
    Ended(&'static str),
}

impl AgentError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }
}

/// Runs until SIGTERM or SIGINT. `log_level`: of the kernel programs, 0 is off.
///
/// # Errors
/// When it cannot start, or a part of it ended by itself.
pub fn run(config: Config, log_level: u8) -> Result<(), AgentError> {
    let begun = Begun::lock(config)?;
    // Before anything is done to the kernel: a second agent, or another
    // program on our port, must change nothing.
    let listener = listen(begun.config.listen)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AgentError::io("the runtime"))?;
    let _inside = runtime.enter();
    let Enforcing {
        _lock,
        config,
        board,
        watched,
        identities,
        kernel,
        guard,
        reconciler,
    } = begun.enforce(log_level)?;
    let offset = board.boot_offset.load(Ordering::Relaxed);
    let trail = open_trail(&config, kernel, offset)?;

    let events = Events {
        pins: guard.pins.clone(),
        trail,
        board: board.clone(),
        checkpoint: config.audit.checkpoint,
    };
    let metrics = Metrics::new(&guard.pins, &board)?;
    let metrics = metrics::server::Server::new(listener, metrics, board.clone())
        .map_err(AgentError::io(config.listen.to_string()))?;
    let root = guard.root.clone();
    let program = Program::start(reconciler, guard, watched, events, &board)?;
    let cluster = cluster::Following {
        identities,
        config: config.clone(),
        root,
        board: board.clone(),
        driver: program.driver.clone(),
    };
    runtime.block_on(program.serve(&config, metrics, board, cluster))
}

/// Enforces what an agent would at its start, and ends: at boot, before there is
/// one. Gives the generation in force.
///
/// # Errors
/// When it cannot.
pub fn restore(config: Config) -> Result<Generation, AgentError> {
    let enforcing = Begun::lock(config)?.enforce(LOG_OFF)?;
    Ok(enforcing.reconciler.generation())
}

fn listen(address: SocketAddr) -> Result<TcpListener, AgentError> {
    TcpListener::bind(address).map_err(|error| AgentError::Listen { address, error })
}

fn open_trail(config: &Config, kernel: KernelState, boot_offset: u64) -> Result<Trail, AgentError> {
    let audit = &config.audit;
    let directory = audit.file.parent().unwrap_or(&config.state_directory);
    std::fs::create_dir_all(directory).map_err(AgentError::io(directory.display().to_string()))?;
    let name = config.node.clone().unwrap_or_else(node::name);
    let trail = TrailConfig {
        rotate_bytes: audit.rotate_bytes,
        keep_files: audit.keep_files,
        fold_window: audit.fold,
        ..TrailConfig::new(
            audit.file.clone(),
            config.state_directory.clone(),
            name.into(),
            boot_offset,
        )
    };
    Ok(Trail::open(trail, kernel)?)
}

/// Has the reconcile thread look whenever links change. Gives what ends it.
async fn follow_links(
    mut links: netlink::watch::Watch,
    driver: &driver::Driver,
) -> netlink::NetlinkError {
    // Something may have changed before the watch was open.
    driver.links_changed();
    loop {
        match links.next().await {
            Ok(_) => driver.links_changed(),
            Err(error) => return error,
        }
    }
}

/// The threads, while they run.
struct Program {
    driver: driver::Driver,
    reconcile: std::thread::JoinHandle<()>,
    reconcile_ended: oneshot::Receiver<()>,
    events: std::thread::JoinHandle<events::Outcome>,
    events_ended: oneshot::Receiver<()>,
    stop: watch::Sender<bool>,
}

impl Program {
    fn start(
        reconciler: Reconciler,
        guard: Guard,
        watched: Watched,
        events: Events,
        board: &Arc<Board>,
    ) -> Result<Self, AgentError> {
        let (reconcile_ends, reconcile_ended) = oneshot::channel();
        let (events_end, events_ended) = oneshot::channel();
        let (stop, stopped) = watch::channel(false);
        let now = node::boot_time().unwrap_or(0);
        board.events.beat(now);
        board.driver.beat(now);
        let events = events::spawn(events, stopped, events_end)
            .map_err(AgentError::io("the event thread"))?;
        let (driver, reconcile) =
            driver::spawn(reconciler, guard, watched, board.clone(), reconcile_ends)
                .map_err(AgentError::io("the reconcile thread"))?;
        Ok(Self {
            driver,
            reconcile,
            reconcile_ended,
            events,
            events_ended,
            stop,
        })
    }

    /// Answers whoever asks, until a signal comes or a thread ends.
    async fn serve(
        mut self,
        config: &Config,
        metrics: metrics::server::Server,
        board: Arc<Board>,
        cluster: cluster::Following,
    ) -> Result<(), AgentError> {
        let result = self.answer(config, metrics, board, cluster).await;
        self.driver.stop();
        let _ = self.stop.send(true);
        let outcome = self.events.join();
        let _ = self.reconcile.join();
        match outcome {
            Ok(Ok(trail)) => tracing::info!(
                recorded = trail.recorded,
                "the audit trail is written; enforcement goes on"
            ),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(AgentError::Ended("event")),
        }
        result
    }

    async fn answer(
        &mut self,
        config: &Config,
        metrics: metrics::server::Server,
        board: Arc<Board>,
        cluster: cluster::Following,
    ) -> Result<(), AgentError> {
        let socket = admin::socket(&config.runtime_directory);
        let admin = admin::server::Server::bind(&socket, board.clone(), self.driver.clone())
            .map_err(AgentError::io(socket.display().to_string()))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::io("signals"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::io("signals"))?;
        let links = netlink::watch::Watch::open().map_err(AgentError::Netlink)?;
        tracing::info!(address = %config.listen, socket = %socket.display(), "the agent runs");
        tokio::select! {
            error = follow_links(links, &self.driver) => Err(AgentError::Netlink(error)),
            () = cluster.run() => Err(AgentError::Ended("cluster")),
            () = admin.run() => Err(AgentError::Ended("admin")),
            () = metrics.run() => Err(AgentError::Ended("metrics")),
            _ = &mut self.reconcile_ended => Err(AgentError::Ended("reconcile")),
            _ = &mut self.events_ended => Err(AgentError::Ended("event")),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    }
}
