//! The thread that ends connections. It follows the state in force, always the
//! latest, and never keeps anybody waiting.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use zt_common::{address::Ip, codes::Action, identity::Number, policy::Side, state::Control};

use super::{
    far::{Owners, Sockets},
    places,
    verdict::{Denial, denied},
};
use crate::{
    agent::board::Board,
    audit::names::Identity,
    compile::Tables,
    explain::World,
    kernel::{KernelError, cgroup::Root, pins::Pins, sys},
    model::Numbers,
    netlink::{
        NetlinkError,
        sock_diag::{Diag, Family, SocketId, TcpSocket},
    },
    source::{netns, node},
};

/// The clock of deadlines runs on while the machine sleeps, and that of this
/// thread's alarm does not: look at least so often.
const NAP: Duration = Duration::from_secs(1);

/// What is in force.
#[derive(Clone, Debug)]
pub struct InForce {
    pub tables: Arc<Tables>,
    pub control: Control,
    pub quarantined: Arc<BTreeSet<Number>>,
}

impl InForce {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.tables, &other.tables)
            && Arc::ptr_eq(&self.quarantined, &other.quarantined)
    }
}

/// Asks the thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct Cutter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    orders: Mutex<Orders>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Orders {
    in_force: Option<InForce>,
    /// Namespaces that are known without their processes.
    declared: BTreeSet<PathBuf>,
    /// Look at the sockets.
    look: bool,
    stop: bool,
}

impl Cutter {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the maps are not pinned, or no thread can be started.
    pub fn start(pins: &Pins, root: Arc<Root>, board: Arc<Board>) -> Result<Self, KernelError> {
        let shared = Arc::new(Shared::default());
        let storage = sys::get_pinned(&pins.map("zt_socket_v1"))
            .map_err(KernelError::call("get", "zt_socket_v1"))?;
        let worker = Worker {
            shared: shared.clone(),
            board,
            root,
            storage,
        };
        thread::Builder::new()
            .name("cut".to_owned())
            .spawn(move || worker.run())
            .map_err(KernelError::io("the thread that cuts connections"))?;
        Ok(Self(shared))
    }

    /// Another state is in force. `narrowed`: something may have been taken
    /// away with it.
    pub fn follow(&self, in_force: InForce, narrowed: bool) {
        self.order(|orders| {
            // The first one: whatever changed while there was no agent.
            orders.look |= narrowed || orders.in_force.is_none();
            orders.in_force = Some(in_force);
        });
    }

    /// Namespaces in which workloads are.
    pub fn declare(&self, namespaces: BTreeSet<PathBuf>) {
        self.order(|orders| orders.declared = namespaces);
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.0.lock());
        self.0.changed.notify_one();
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.order(|orders| orders.stop = true);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        // Nobody leaves them half changed.
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an order, a deadline, or the end (`None`).
    fn next(&self, deadline: &mut Deadline) -> Option<BTreeSet<PathBuf>> {
        let mut orders = self.lock();
        loop {
            if orders.stop {
                return None;
            }
            if let Some(in_force) = orders.in_force.clone() {
                deadline.follow(&in_force);
                if orders.look || deadline.is_over() {
                    orders.look = false;
                    return Some(orders.declared.clone());
                }
            }
            let waited = self.changed.wait_timeout(orders, deadline.nap());
            orders = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What is in force; `None`: it is the end.
    fn latest(&self) -> Option<InForce> {
        let orders = self.lock();
        orders.in_force.clone().filter(|_| !orders.stop)
    }

    /// Whether this is still what is in force.
    fn is_latest(&self, in_force: &InForce) -> bool {
        let orders = self.lock();
        let latest = orders.in_force.as_ref();
        !orders.stop && latest.is_some_and(|latest| latest.is(in_force))
    }
}

/// The next deadline of a grant.
#[derive(Default)]
struct Deadline {
    /// Of these tables.
    tables: Option<Arc<Tables>>,
    /// `CLOCK_BOOTTIME` ns.
    next: Option<u64>,
}

impl Deadline {
    fn follow(&mut self, in_force: &InForce) {
        let same = |tables: &Arc<Tables>| Arc::ptr_eq(tables, &in_force.tables);
        if !self.tables.as_ref().is_some_and(same) {
            self.tables = Some(in_force.tables.clone());
            self.next = next_deadline(&in_force.tables, now());
        }
    }

    /// Whether it has passed. Then the one after it is the next.
    fn is_over(&mut self) -> bool {
        let now = now();
        let over = self.next.is_some_and(|next| next <= now);
        if over {
            let tables = self.tables.as_ref();
            self.next = tables.and_then(|tables| next_deadline(tables, now));
        }
        over
    }

    fn nap(&self) -> Duration {
        let left = |next: u64| Duration::from_nanos(next.saturating_sub(now()));
        self.next.map_or(NAP, |next| left(next).min(NAP))
    }
}

/// The first deadline after `now`, `CLOCK_BOOTTIME` ns.
fn next_deadline(tables: &Tables, now: u64) -> Option<u64> {
    let grant = |side: &Side| side.action == Action::Allow as u8 && side.deadline > now;
    let rows = tables.policy.values().chain(tables.range.values());
    let grants = rows.map(|entry| entry.now).filter(grant);
    grants.map(|side| side.deadline).min()
}

fn now() -> u64 {
    node::boot_time().unwrap_or(0)
}

/// Why sockets are not looked at.
#[derive(Debug, thiserror::Error)]
enum CutError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("it cannot be entered: {0}")]
    Enter(io::Error),
}

struct Worker {
    shared: Arc<Shared>,
    board: Arc<Board>,
    root: Arc<Root>,
    storage: OwnedFd,
}

impl Worker {
    fn run(self) {
        if let Err(why) = self.probe() {
            tracing::warn!(
                "this kernel cannot end connections: {why}; those that are no longer allowed are stopped all the same, and their owners wait for their own timeouts"
            );
            self.board.facts().cannot_cut = Some(why);
            return;
        }
        let mut deadline = Deadline::default();
        while let Some(declared) = self.shared.next(&mut deadline) {
            self.pass(&declared);
        }
    }

    /// Whether this kernel has all that it takes.
    fn probe(&self) -> Result<(), String> {
        let missing = |option| move |error| format!("it has no {option} ({error})");
        let mut diag = Diag::open().map_err(missing("CONFIG_INET_DIAG"))?;
        for family in FAMILIES {
            diag.list(family, self.storage.as_fd())
                .map_err(missing("CONFIG_INET_TCP_DIAG"))?;
        }
        diag.probe().map_err(missing("CONFIG_INET_DIAG_DESTROY"))
    }

    /// Looks at all sockets once.
    fn pass(&self, declared: &BTreeSet<PathBuf>) {
        let places = places::look(&self.root.path, declared);
        for result in netns::inside(&places.namespaces, || self.here(&places.owners)) {
            if let Err(error) = result.map_err(CutError::Enter).flatten() {
                tracing::warn!(%error, "the sockets of a network namespace are not looked at: those that are no longer allowed wait for their own timeouts");
            }
        }
    }

    /// In the network namespace of this thread.
    fn here(&self, owners: &Owners) -> Result<(), CutError> {
        let mut diag = Diag::open()?;
        let mut all = Vec::new();
        for family in FAMILIES {
            all.extend(diag.list(family, self.storage.as_fd())?);
        }
        // Also those that have been ended: they still tell who was at the
        // other end of the others.
        let sockets = Sockets::new(&all, owners);
        let mut ended = HashSet::new();
        while let Some(in_force) = self.shared.latest() {
            let still = || self.shared.is_latest(&in_force);
            if self.cut(&mut diag, &sockets, &mut ended, &in_force, still)? {
                break;
            }
        }
        Ok(())
    }

    /// Ends what is denied while `still` says that it is. `false`: something
    /// else came into force, and it may be allowed again.
    fn cut(
        &self,
        diag: &mut Diag,
        sockets: &Sockets<'_>,
        ended: &mut HashSet<SocketId>,
        in_force: &InForce,
        still: impl Fn() -> bool,
    ) -> Result<bool, CutError> {
        let numbers = Numbers::default();
        let world = World {
            tables: &in_force.tables,
            numbers: &numbers,
            quarantined: &in_force.quarantined,
            generation: Control::unpack(in_force.control.active).0,
            control: &in_force.control,
            now: now(),
        };
        for (socket, denial) in denied(sockets, &world) {
            if !still() {
                return Ok(false);
            }
            if ended.insert(socket.id) && diag.destroy(&socket.id)? {
                self.tell(socket, &denial);
            }
        }
        Ok(true)
    }

    fn tell(&self, socket: &TcpSocket, denial: &Denial) {
        let reason = denial.reason.name();
        *self.board.facts().cut.entry(reason).or_default() += 1;
        let names = self.board.names.borrow().clone();
        let name = |number| match names.identity(number) {
            Identity::Spiffe(text) | Identity::Other(text) => text,
        };
        tracing::warn!(
            reason,
            source = %name(denial.source),
            destination = %name(denial.destination),
            rule = names.rule(denial.rule).as_deref(),
            workload = names.workload(denial.cgroup).as_deref(),
            local = %address(&socket.local, socket.local_port),
            remote = %address(&socket.remote, socket.remote_port),
            "a connection was cut"
        );
    }
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn address(ip: &Ip, port: u16) -> SocketAddr {
    let v6 = Ipv6Addr::from(*ip);
    SocketAddr::new(IpAddr::V6(v6).to_canonical(), port)
}
