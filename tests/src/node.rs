//! A node without its agent: the real programs and maps, driven by the test.
//!
//! It loads and pins into the sandbox's own bpffs and attaches to the
//! sandbox's own cgroup, so that a test decides what is in force and when.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::{Map, MapData, RingBuf};
use zt_agent::{
    compile,
    document::{SourceFile, policy},
    kernel::{
        cgroup::Root,
        counters::Counters,
        frames::{self, Frames},
        keeper::Keeper,
        links,
        load::{self, LOG_OFF, Loaded, MapSizes},
        pins::Pins,
        store::{Applied, Store},
        sys,
        trust::TrustMap,
    },
    model::{
        Endpoint, InterfaceSpec, Mode, Name, NodeModel, Numbers, Party, Policy, SpiffeId,
        WorkloadSpec,
    },
    source::interfaces::{self, Coverage, Covered, Interfaces},
};
use zt_common::{
    address::workload_flags,
    event::Event,
    flow::FlowKey,
    state::{Control, control_flags},
};

use crate::{
    Sandbox, Workload,
    bpffs::Bpffs,
    cgroup::Cgroup,
    emptied,
    netns::{Netns, Network},
};

/// What frames are marked with that may leave their workload.
pub const MARK: u32 = 0x10;

/// Sizes that are quick to make.
pub const SIZES: MapSizes = MapSizes {
    policy: 16_384,
    range: 16_384,
    address: 4_096,
    cidr: 4_096,
    workload: 1_024,
    flow: 16_384,
    ring_bytes: 4 << 20,
};

/// See the module.
pub struct Node {
    pub pins: Pins,
    pub root: Root,
    pub store: Store,
    pub trust: TrustMap,
    pub counters: Counters,
    pub numbers: Numbers,
    pub keeper: Keeper,
    loaded: Loaded,
    ring: RingBuf<MapData>,
    /// Interfaces with programs on them, and the namespaces that they are in.
    covered: Vec<(Arc<Netns>, u32)>,
    // Last: unmounted after everything in it is closed.
    _bpffs: Bpffs,
}

impl Node {
    /// Loads the programs; nothing is attached yet and no generation active.
    pub fn new(sandbox: &Sandbox) -> Result<Self> {
        Self::with_sizes(sandbox, &SIZES)
    }

    /// As [`Self::new`], with maps of other sizes.
    pub fn with_sizes(sandbox: &Sandbox, sizes: &MapSizes) -> Result<Self> {
        Self::make(sandbox, sandbox.cgroup(), sizes)
    }

    /// As [`Self::new`], with another managed root than the sandbox's cgroup.
    pub fn below(sandbox: &Sandbox, managed: &Cgroup) -> Result<Self> {
        Self::make(sandbox, managed, &SIZES)
    }

    /// As [`Self::new`], with another managed root and maps of other sizes; the
    /// sandbox has only the pins.
    pub fn make(sandbox: &Sandbox, managed: &Cgroup, sizes: &MapSizes) -> Result<Self> {
        let bpffs = sandbox.bpffs()?;
        let pins = Pins::new(bpffs.path().join("zt"));
        pins.prepare()?;
        let root = Root::open(managed.path(), false)?;
        let loaded = load::load(&pins, sizes, LOG_OFF)?;
        let store = inactive_store(&pins, &root)?;
        let ring = MapData::from_pin(pins.map("zt_events_v1"))?;
        Ok(Self {
            trust: TrustMap::open(&pins)?,
            counters: Counters::open(&pins)?,
            keeper: Keeper::open(&pins, &sandbox.directory())?,
            numbers: Numbers::default(),
            ring: RingBuf::try_from(Map::RingBuf(ring))?,
            covered: Vec::new(),
            pins,
            root,
            store,
            loaded,
            _bpffs: bpffs,
        })
    }

    /// Attaches all programs to the sandbox's cgroup, but for the one that is
    /// left out.
    pub fn attach(&self) -> Result<()> {
        links::attach(&self.loaded, &self.root, &self.pins, || {})?;
        let left_out = left_out()?;
        let of_sockets = |point: &&links::AttachPoint| Some(point.program) == left_out;
        match links::POINTS.iter().find(of_sockets) {
            Some(point) => self.detach(point.program),
            None => Ok(()),
        }
    }

    /// Attaches the programs for frames to the network's side of a workload's
    /// interface.
    pub fn cover(&mut self, network: &Network, workload: &Workload) -> Result<()> {
        self.cover_from(network.bridge(), workload)
    }

    /// As [`Self::cover`], where the other end of the interface is in `host`.
    pub fn cover_from(&mut self, host: &Arc<Netns>, workload: &Workload) -> Result<()> {
        let port = port_in(host, workload)?;
        let frames = Frames::new(&self.loaded, &self.pins)?;
        let left_out = left_out()?;
        // First: what is attached before something fails is to be removed, too.
        self.covered.push((Arc::clone(host), port.host_index));
        host.enter(|| {
            frames.cover(port.host_index)?;
            // Nothing happens if it is a program of the sockets.
            frames.detach(left_out.unwrap_or_default(), port.host_index)?;
            Ok(())
        })
    }

    /// Removes one program, to show that a test notices.
    pub fn detach(&self, program: &str) -> Result<()> {
        take_off(&self.pins.link(program))
    }

    /// Removes every program from the sandbox's cgroup.
    pub fn detach_all(&self) -> Result<()> {
        for point in links::POINTS {
            let link = self.pins.link(point.program);
            if link.exists() {
                take_off(&link)?;
            }
        }
        Ok(())
    }

    /// Removes every program from everywhere, and those that were pinned.
    pub fn release(&mut self) -> Result<()> {
        self.uncover()?;
        for link in fs::read_dir(self.pins.links())? {
            take_off(&link?.path())?;
        }
        for entry in fs::read_dir(self.pins.directory())? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Takes the programs off the interfaces, from where they are: a pin says that
    /// only of a link, and a classifier stays when its pin goes.
    pub fn uncover(&mut self) -> Result<()> {
        if self.covered.is_empty() {
            return Ok(());
        }
        let frames = Frames::new(&self.loaded, &self.pins)?;
        for (namespace, interface) in self.covered.drain(..) {
            namespace.enter(|| Ok(frames.uncover(interface)?))?;
        }
        Ok(())
    }

    /// Begins anew for another sandbox: nothing is attached, the maps are empty,
    /// and no generation is active. They stay where they are.
    pub fn renew(&mut self, sandbox: &Sandbox, managed: &Cgroup) -> Result<()> {
        self.release()?;
        emptied::empty(&self.pins)?;
        self.root = Root::open(managed.path(), false)?;
        self.store = inactive_store(&self.pins, &self.root)?;
        self.keeper = Keeper::open(&self.pins, &sandbox.directory())?;
        self.numbers = Numbers::default();
        self.events();
        Ok(())
    }

    /// Pins one program for a process that runs it by itself, and says where.
    pub fn pin_program(&self, program: &str) -> Result<PathBuf> {
        let path = self.pins.directory().join(program);
        sys::pin(self.loaded.program(program)?.as_fd(), &path)
            .with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Instructions that the verifier walked, by program.
    #[must_use]
    pub fn verified_instructions(&self) -> Vec<(String, u32)> {
        self.loaded.verified_instructions()
    }

    /// Compiles the model and makes it true.
    pub fn apply(&mut self, model: &NodeModel) -> Result<Applied> {
        self.apply_shut(model, &BTreeSet::new())
    }

    /// As if what is denied to these found no room.
    pub fn apply_shut(&mut self, model: &NodeModel, shut: &BTreeSet<SpiffeId>) -> Result<Applied> {
        let fresh = self.store.control().generations().0 == 0;
        self.keeper.give(&compile::names(model), fresh)?;
        self.numbers = self.keeper.numbers().clone();
        let mut compiled = compile::compile(model, &self.numbers)?;
        for one in model
            .workloads
            .iter()
            .filter(|one| shut.contains(&one.identity))
        {
            if let Some(row) = compiled.tables.workload.get_mut(&one.cgroup) {
                row.flags |= workload_flags::SHUT;
            }
        }
        let applied = self.store.apply(compiled.tables, compiled.takes_over)?;
        self.keeper.tidy(&mut self.store, false)?;
        Ok(applied)
    }

    /// Takes numbers back that nobody needs, however few. Gives whether any came
    /// back.
    pub fn tidy(&mut self) -> Result<bool> {
        Ok(self.keeper.tidy(&mut self.store, true)?)
    }

    /// Empties the flow tables, as if everything in them had been evicted.
    pub fn forget_flows(&self) -> Result<()> {
        for name in ["zt_flow_v1", "zt_spill_v1"] {
            let map = sys::get_pinned(&self.pins.map(name))?;
            while let Some(key) = sys::map_next_key::<FlowKey>(map.as_fd(), None)? {
                sys::map_delete(map.as_fd(), &key)?;
            }
        }
        Ok(())
    }

    /// The number of an identity.
    pub fn number(&self, id: &str) -> Result<u32> {
        let id: SpiffeId = id.parse()?;
        self.numbers
            .get(&Name::Spiffe(id))
            .context("the identity has no number")
    }

    /// Every event since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.ring.next() {
            events.extend(Event::from_bytes(&item));
        }
        events
    }
}

/// The tables, with a control element that governs `root` and makes nothing active.
fn inactive_store(pins: &Pins, root: &Root) -> Result<Store> {
    let store = Store::adopt(pins)?;
    store.control().configure(&Control {
        active: 0,
        epoch: 1,
        root: root.id,
        root_level: root.level,
        flags: control_flags::HOST_MAY_REACH,
        datagram_idle: 60_000_000_000,
        flow_share: 4_096,
        mark: MARK,
        zero: 0,
    });
    Ok(store)
}

/// Detaches a pinned link and removes the pin. To remove the pin alone does it
/// too, but some time later.
fn take_off(pin: &Path) -> Result<()> {
    if let Ok(link) = sys::get_pinned(pin) {
        // What it was attached to may be gone.
        let _ = sys::link_detach(link.as_fd());
    }
    fs::remove_file(pin).with_context(|| pin.display().to_string())
}

/// The identity of a workload of the tests.
#[must_use]
pub fn identity(name: &str) -> String {
    format!("spiffe://test/c/ns/{name}")
}

/// Builds a node model for workloads of a sandbox.
#[derive(Clone)]
pub struct World {
    pub model: NodeModel,
}

impl Default for World {
    fn default() -> Self {
        Self {
            model: NodeModel {
                mode: Mode::Enforce,
                workloads: Vec::new(),
                endpoints: Vec::new(),
                interfaces: Vec::new(),
                host_netns: None,
                departed: Vec::new(),
                node_addresses: Vec::new(),
                cluster_ranges: Vec::new(),
                policies: Vec::new(),
                boot_offset: boot_offset(),
                set_back_from: 0,
            },
        }
    }
}

impl World {
    /// Enrols a workload under its name, with its addresses and, if it has
    /// one, its namespace for itself.
    #[must_use]
    pub fn enrol(mut self, workload: &Workload, addresses: &[IpAddr]) -> Self {
        let netns = workload.netns().and_then(|netns| netns.cookie().ok());
        self = self.enrol_cgroup(workload.name(), workload.cgroup(), netns);
        for ip in addresses {
            self.model.endpoints.push(Endpoint {
                ip: *ip,
                party: party(workload.name()),
                cgroup: workload.cgroup().id().ok(),
                ports: None,
                target: None,
            });
        }
        self
    }

    /// Says whose interface it is at which `workload` is on the network.
    pub fn connect(self, network: &Network, workload: &Workload) -> Result<Self> {
        self.connect_from(network.bridge(), workload)
    }

    /// As [`Self::connect`], where the other end of the interface is in `host`.
    pub fn connect_from(mut self, host: &Netns, workload: &Workload) -> Result<Self> {
        let port = port_in(host, workload)?;
        let netns = workload.netns().context("it has no namespace")?;
        self.model.interfaces.push(InterfaceSpec {
            index: port.host_index,
            name: port.host_name.into(),
            netns: netns.cookie()?,
            mac: port.mac,
            addresses: port.addresses,
        });
        Ok(self)
    }

    /// Enrols a cgroup under `name`.
    #[must_use]
    pub fn enrol_cgroup(mut self, name: &str, cgroup: &Cgroup, netns: Option<u64>) -> Self {
        self.model.workloads.push(WorkloadSpec {
            identity: identity(name).parse().expect("a valid identity"),
            cgroup: cgroup.id().expect("the cgroup is there"),
            path: cgroup.path().to_string_lossy().as_ref().into(),
            mode: self.model.mode,
            raw_sockets: false,
            netns,
        });
        self
    }

    /// Adds a claim to an address.
    #[must_use]
    pub fn claim(mut self, endpoint: Endpoint) -> Self {
        self.model.endpoints.push(endpoint);
        self
    }

    /// Puts the node and every workload enrolled so far into `mode`.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.model.mode = mode;
        for workload in &mut self.model.workloads {
            workload.mode = mode;
        }
        self
    }

    /// Replaces the policies with one whose `spec.rules` are `rules` (YAML, a
    /// flow sequence or an indented list).
    pub fn rules(mut self, rules: &str) -> Result<Self> {
        self.model.policies = policies(&format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: test}}\nspec:\n  rules: {rules}\n"
        ))?;
        Ok(self)
    }
}

/// Names a program that is to be left out, to see which tests notice.
pub const WITHOUT: &str = "ZT_WITHOUT_PROGRAM";

/// The program that [`WITHOUT`] names.
fn left_out() -> Result<Option<&'static str>> {
    let Ok(wanted) = std::env::var(WITHOUT) else {
        return Ok(None);
    };
    let found = programs().find(|program| *program == wanted);
    // A typing error must not pass for a program that nobody misses.
    found
        .map(Some)
        .with_context(|| format!("{WITHOUT}: there is no program {wanted:?}"))
}

/// Every program that is attached somewhere.
pub fn programs() -> impl Iterator<Item = &'static str> {
    let sockets = links::POINTS.iter().map(|point| point.program);
    sockets.chain(frames::POINTS.map(|point| point.program))
}

/// The other side, in `host`, of a workload's only interface.
fn port_in(host: &Netns, workload: &Workload) -> Result<Covered> {
    let netns = workload.netns().context("it has no namespace")?;
    let paths = [netns.path()];
    let mut found = host.enter(|| Ok(interfaces::find(&paths)?))?;
    let namespace = found.pop().context("nothing found")??;
    let Interfaces::Workload(coverage) = namespace.interfaces else {
        bail!("{} has no namespace of its own", workload.name());
    };
    let covered = coverage.into_iter().find_map(|one| match one {
        Coverage::Covered(covered) => Some(covered),
        _ => None,
    });
    covered.with_context(|| format!("{} has no interface", workload.name()))
}

/// Parses policy documents.
pub fn policies(text: &str) -> Result<Vec<Policy>> {
    policy::parse(&[SourceFile::new("test.yaml", text)]).map_err(|problems| {
        let text: BTreeMap<usize, String> = problems
            .iter()
            .map(ToString::to_string)
            .enumerate()
            .collect();
        anyhow!("{text:?}")
    })
}

/// A rule that allows `from` to reach `to`, as YAML.
#[must_use]
pub fn allow(from: &str, to: &str, ports: &str, protocol: &str) -> String {
    format!(
        "{{from: {{spiffe: \"{}\"}}, to: [{{spiffe: \"{}\", ports: {ports}, protocol: {protocol}}}]}}",
        identity(from),
        identity(to)
    )
}

/// The party of a workload of the tests.
#[must_use]
pub fn party(name: &str) -> Party {
    Party::Workload(identity(name).parse().expect("a valid identity"))
}

/// `CLOCK_REALTIME` − `CLOCK_BOOTTIME`, nanoseconds.
#[must_use]
pub fn boot_offset() -> u64 {
    clock(nix::time::ClockId::CLOCK_REALTIME) - clock(nix::time::ClockId::CLOCK_BOOTTIME)
}

fn clock(id: nix::time::ClockId) -> u64 {
    let now = nix::time::clock_gettime(id).expect("the clock can be read");
    let seconds = u64::try_from(now.tv_sec()).unwrap_or_default();
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or_default()
}
