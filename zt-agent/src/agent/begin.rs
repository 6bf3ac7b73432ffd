//! The start: from nothing to what `run` and `restore` have in common, all of
//! it enforced.

use std::{path::PathBuf, sync::Arc};

use super::{
    AgentError,
    board::{self, Board},
    coverage::Coverage,
    enforce::Enforcer,
    guard::Guard,
    kernel_log,
    lock::{self, Lock},
    reconcile::{Reconciler, Sources},
    start::Kernel,
};
use crate::{
    audit::KernelState,
    document::Config,
    kernel::{KernelError, elders, frames::Frames, held::Held},
    revoke::cutter::Cutter,
    source::{
        clock::Clock,
        identity::{self, IdentitySource},
        node, quarantine,
        watch::Watched,
    },
};

/// Nobody else of ours runs, and nothing is done yet.
pub struct Begun {
    lock: Lock,
    pub config: Arc<Config>,
}

/// The kernel enforces, and nobody follows what changes.
pub struct Enforcing {
    pub _lock: Lock,
    pub config: Arc<Config>,
    pub board: Arc<Board>,
    pub watched: Watched,
    pub identities: IdentitySource,
    /// For the audit trail.
    pub kernel: KernelState,
    pub guard: Guard,
    pub reconciler: Reconciler,
}

impl Begun {
    /// # Errors
    /// When an agent runs, or this one cannot do what the configuration says.
    pub fn lock(config: Config) -> Result<Self, AgentError> {
        if !identity::is_built_in(&config) {
            return Err(AgentError::NoKubernetes);
        }
        let lock = Lock::take(&config.runtime_directory)?;
        Ok(Self {
            lock,
            config: Arc::new(config),
        })
    }

    /// # Errors
    /// When the kernel refuses, or there is nothing to enforce.
    pub fn enforce(self, log_level: u8) -> Result<Enforcing, AgentError> {
        let config = self.config;
        let state = &config.state_directory;
        lock::make_private(state).map_err(AgentError::io(state.display().to_string()))?;
        let clock = Clock::open(&config.runtime_directory).map_err(AgentError::io("the clock"))?;
        let board = Arc::new(Board::new(clock.reading().boot_offset));
        let watched = watched(&config)?;
        let mut kernel = Kernel::open(&config, log_level)?;
        if log_level > 0 {
            kernel_log::forward(&mut kernel.loaded);
        }
        let frames = Frames::new(&kernel.loaded, &kernel.pins)?;
        let (mut guard, enforcer, kernel) = take_apart(kernel, &board)?;
        let name = config.node.clone().unwrap_or_else(node::name);
        let identities = IdentitySource::new(&config, &name);
        if let IdentitySource::Kubernetes(_) = identities {
            board.facts().cluster = Some(board::ClusterFact::default());
        }
        let mut reconciler = Reconciler::new(
            config.clone(),
            board.clone(),
            guard.root.clone(),
            Sources {
                identities: identities.clone(),
                files: watched.clone(),
                clock,
            },
            enforcer,
            Coverage::new(frames, board.clone(), &config),
        );
        reconciler.begin().map_err(AgentError::NothingToEnforce)?;
        guard.attach(|guard| {
            if let IdentitySource::Kubernetes(_) = &identities {
                adopt_elders(guard);
            }
        })?;
        Ok(Enforcing {
            _lock: self.lock,
            config,
            board,
            watched,
            identities,
            kernel,
            guard,
            reconciler,
        })
    }
}

/// Those of the node that are older than our programs count as the node's, too.
fn adopt_elders(guard: &Guard) {
    match elders::adopt(&guard.root, &guard.pins) {
        Ok(adopted) => {
            if adopted.sockets > 0 {
                tracing::info!(
                    count = adopted.sockets,
                    "sockets of this node's are older than the programs"
                );
            }
            if let Some((count, error)) = adopted.refused {
                tracing::error!(count, %error, "processes or sockets of static pods could not be looked at, and those sockets count as unenrolled: start those pods anew");
            }
        }
        Err(error) => {
            tracing::error!(%error, "sockets of static pods that are older than the programs count as unenrolled: start those pods anew");
        }
    }
}

fn take_apart(
    kernel: Kernel,
    board: &Arc<Board>,
) -> Result<(Guard, Enforcer, KernelState), KernelError> {
    let cutter = Cutter::start(&kernel.pins, kernel.root.clone(), board.clone())?;
    let guard = Guard {
        loaded: kernel.loaded,
        root: kernel.root,
        held: Held::open(&kernel.pins)?,
        pins: kernel.pins,
        board: board.clone(),
    };
    let enforcer = Enforcer::new(
        board.clone(),
        kernel.store,
        kernel.keeper,
        kernel.trust,
        cutter,
        kernel.limits,
    );
    Ok((guard, enforcer, kernel.state))
}

/// inotify reports the paths that it was given: they are made absolute once.
fn watched(config: &Config) -> Result<Watched, AgentError> {
    let absolute = |path: &PathBuf| {
        std::path::absolute(path).map_err(AgentError::io(path.display().to_string()))
    };
    let quarantine = quarantine::path(&config.state_directory);
    Ok(Watched {
        policies: config
            .policies
            .iter()
            .map(absolute)
            .collect::<Result<_, _>>()?,
        files: (identity::file(config).map(PathBuf::from).iter())
            .chain([&quarantine])
            .map(absolute)
            .collect::<Result<_, _>>()?,
    })
}
