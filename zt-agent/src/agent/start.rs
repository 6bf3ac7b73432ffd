//! The kernel side at start: maps and programs are there, nothing is attached
//! yet, and what an agent before this one left is taken over.

use std::{fs::File, io::Read as _, path::Path, sync::Arc};

use aya::maps::MapData;
use zt_common::state::{Control, control_flags};

use crate::{
    audit::KernelState,
    compile,
    document::{Config, config::Limits},
    kernel::{
        KernelError,
        cgroup::Root,
        counters::Counters,
        keeper::Keeper,
        links,
        load::{self, Loaded, MapSizes},
        pins::Pins,
        ring,
        store::Store,
        trust::TrustMap,
    },
};

/// A UDP or ICMP flow without a packet for so long is forgotten: twice what
/// RFC 4787 (REQ-5) asks of a NAT at the least, less 60 s.
const DATAGRAM_IDLE: u64 = 180_000_000_000;

/// Everything of ours in the kernel.
pub struct Kernel {
    /// Held: nobody else writes to the maps.
    pub pins: Pins,
    pub root: Arc<Root>,
    pub loaded: Loaded,
    pub store: Store,
    pub keeper: Keeper,
    pub trust: TrustMap,
    pub limits: compile::Limits,
    /// For the audit trail.
    pub state: KernelState,
}

impl Kernel {
    /// Loads the programs and opens the maps; makes them if they are missing.
    ///
    /// # Errors
    /// When the kernel refuses, or what is pinned is of another version.
    pub fn open(config: &Config, log_level: u8) -> Result<Self, KernelError> {
        let root = Arc::new(Root::open(&config.cgroup_root, config.allow_root_cgroup)?);
        let pins = Pins::new(&config.pin_directory);
        pins.prepare()?;
        let pins = pins.hold()?;
        links::refuse_other_root(&root, &pins)?;
        let adopted = pins.exist();
        let consumed = if adopted { ring::consumed(&pins)? } else { 0 };
        let loaded = load::load(&pins, &MapSizes::from(&config.limits), log_level)?;
        let mut store = Store::adopt(&pins)?;
        let found = store.control().read();
        let control = control(config, &root, found)?;
        store.control().configure(&control);
        if found.flags & !control.flags != 0 {
            // What the host was allowed is cached.
            store.narrow();
        }
        let state = KernelState {
            epoch: control.epoch,
            consumed,
            lost_ring: Counters::open(&pins)?.totals()?.lost_ring,
            adopted,
        };
        Ok(Self {
            keeper: Keeper::open(&pins, &config.runtime_directory)?,
            trust: TrustMap::open(&pins)?,
            limits: limits(&pins)?,
            pins,
            root,
            loaded,
            store,
            state,
        })
    }
}

fn control(config: &Config, root: &Root, found: Control) -> Result<Control, KernelError> {
    let epoch = match found.epoch {
        0 => random().map_err(KernelError::io("/dev/urandom"))?,
        epoch => epoch,
    };
    let flags = if config.host_may_reach {
        control_flags::HOST_MAY_REACH
    } else {
        0
    };
    Ok(Control {
        active: found.active,
        epoch,
        root: root.id,
        root_level: root.level,
        flags,
        datagram_idle: DATAGRAM_IDLE,
        flow_share: config.limits.flow_share.into(),
        mark: config.interfaces.mark,
        zero: 0,
    })
}

/// Not 0: that stands for "none yet".
fn random() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    File::open(Path::new("/dev/urandom"))?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes).max(1))
}

impl From<&Limits> for MapSizes {
    fn from(limits: &Limits) -> Self {
        Self {
            policy: limits.policy_entries,
            // A trie takes memory only for the rows it has.
            range: limits.policy_entries,
            address: limits.addresses,
            cidr: limits.cidrs,
            workload: limits.workloads,
            flow: limits.flows,
            ring_bytes: limits.ring_bytes,
        }
    }
}

/// The sizes that the maps really have: a pinned map keeps the one it was
/// made with.
fn limits(pins: &Pins) -> Result<compile::Limits, KernelError> {
    let size = |name: &str| {
        let info = MapData::from_pin(pins.map(name)).and_then(|map| map.info());
        info.map(|info| info.max_entries() as usize)
            .map_err(|error| KernelError::Load(format!("{name}: {error}")))
    };
    let policy = size("zt_policy_v1")?;
    Ok(compile::Limits {
        policy,
        links: compile::links(policy),
        range: size("zt_range_v1")?,
        address: size("zt_address_v1")?,
        cidr: size("zt_cidr_v1")?,
        workload: size("zt_workload_v1")?,
        interface: size("zt_interface_v1")?,
    })
}
