//! The programs of `zt-floor`: empty ones, and the minimal ones with maps as
//! full as ours.

use std::any::Any;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapError, PerCpuHashMap, PerCpuValues},
    programs::{CgroupAttachMode, CgroupSkbAttachType, Program, TcAttachType},
};
use zt_agent::{document::config::Limits, kernel::sys};
use zt_common::{
    address::{AddressKey, Interface, Peer, Workload, mapped},
    flow::{Cached, Flow, FlowKey, Share},
    identity::FIRST_SPIFFE,
    policy::{Entry, PolicyKey, Side},
    state::{Control, CountKey},
    version::Row,
};

use super::{
    hooks::{self, Hooks},
    place::{CLIENT, HOST_SIDE, PORT, Place, SERVER},
    rival::Rival,
};
use crate::{FIRST_PORT, PORTS, peer_address};

/// As many entries as the largest policy of the contenders.
const PEERS: u32 = 65_536 / PORTS as u32;
const CLIENT_NUMBER: u32 = FIRST_SPIFFE;
const SERVER_NUMBER: u32 = FIRST_SPIFFE + 1;
const FIRST_PEER: u32 = FIRST_SPIFFE + 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const RULE: u32 = 1;
/// Flows that are looked at to find one that frames were of.
const LOOKED_AT: usize = 1_000;
/// The one pair that talks.
const PAIR: CountKey = CountKey {
    source: CLIENT_NUMBER,
    destination: SERVER_NUMBER,
    verdict: 1,
    reason: 1,
    direction: 1,
    zero: 0,
};

pub struct Floor {
    ebpf: Ebpf,
    prefix: &'static str,
    entries: usize,
    /// Dropping them detaches.
    links: Vec<Box<dyn Any>>,
}

/// The hooks, by what follows the prefix in a program's name. What the workload
/// is sent comes first, as with ours.
const HOOKS: [&str; 6] = [
    "sock_create",
    "connect4",
    "egress",
    "ingress",
    "tc_to",
    "tc_from",
];

impl Floor {
    /// Loads the programs whose names start with `prefix`.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn new(object: &Path, prefix: &'static str) -> Result<Self> {
        Self::with_flows(object, prefix, Limits::default().flows)
    }

    /// The same, with room for so many flows.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn with_flows(object: &Path, prefix: &'static str, flows: u32) -> Result<Self> {
        let limits = Limits::default();
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("floor_workload", limits.workloads)
            .map_max_entries("floor_interface", limits.workloads)
            .map_max_entries("floor_address", limits.addresses)
            .map_max_entries("floor_policy", limits.policy_entries)
            .map_max_entries("floor_flow", flows)
            .load_file(object)
            .with_context(|| object.display().to_string())?;
        for hook in HOOKS {
            let name = format!("{prefix}_{hook}");
            load(program(&mut ebpf, &name)?).with_context(|| name.clone())?;
        }
        Ok(Self {
            ebpf,
            prefix,
            entries: 0,
            links: Vec::new(),
        })
    }

    /// Pins any program of the object at `path`.
    ///
    /// # Errors
    /// When there is none of that name, and when the kernel refuses.
    pub fn pin(&mut self, name: &str, path: &Path) -> Result<()> {
        let program = program(&mut self.ebpf, name)?;
        if program.fd().is_err() {
            load(program).with_context(|| name.to_owned())?;
        }
        sys::pin(program.fd()?.as_fd(), path).with_context(|| path.display().to_string())
    }

    /// Makes the programs know one workload and its interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn stand_in(&self, cgroup: u64, interface: u32, at: Interface) -> Result<()> {
        self.put("floor_control", &0_u32, &Control::default())?;
        self.put("floor_workload", &cgroup, &row(cgroup, client()))?;
        self.put("floor_interface", &interface, &row(interface, at))
    }

    /// Makes them know who is at an address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn known(&self, ip: IpAddr) -> Result<()> {
        self.address(ip, SERVER_NUMBER)
    }

    /// Makes them know a flow.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flow(&self, key: FlowKey) -> Result<()> {
        let flow = Flow {
            cached: Cached {
                source: CLIENT_NUMBER,
                destination: SERVER_NUMBER,
                verdict: 1,
                ..Cached::default()
            },
            seen: 0,
            key,
        };
        self.put("floor_flow", &key, &flow)
    }

    /// How many packets of a flow the programs met.
    ///
    /// # Errors
    /// When the kernel refuses, and when they do not know it.
    pub fn seen(&self, key: FlowKey) -> Result<u64> {
        let flows = map_data(self.ebpf.map("floor_flow").context("floor_flow")?)?;
        let flow: Option<Flow> = sys::map_lookup(flows, &key)?;
        Ok(flow.context("the flow is not known")?.seen)
    }

    /// Everything that the programs look up, and as many others as ours has.
    pub fn fill(&mut self, place: &Place) -> Result<()> {
        let cgroup = place.party.cgroup().id()?;
        let interface = hooks::interface(place)?;
        let at = Interface {
            cgroup,
            ..Interface::default()
        };
        self.stand_in(cgroup, interface, at)?;
        self.put("floor_share", &cgroup, &Share::default())?;
        self.address(CLIENT, CLIENT_NUMBER)?;
        self.address(SERVER, SERVER_NUMBER)?;
        self.allow(SERVER_NUMBER, PORT, TCP)?;
        self.allow(SERVER_NUMBER, PORT, UDP)?;
        for number in 0..PEERS {
            self.address(peer_address(number), FIRST_PEER + number)?;
            for port in (0..PORTS).map(|n| FIRST_PORT + n * 10) {
                self.allow(FIRST_PEER + number, port, TCP)?;
            }
        }
        self.counters()
    }

    /// Ours makes a counter at a pair's first decision.
    fn counters(&mut self) -> Result<()> {
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, error)| anyhow!("the number of CPUs: {path}: {error}"))?;
        let map = self.ebpf.map_mut("floor_count").context("floor_count")?;
        let mut map: PerCpuHashMap<_, CountKey, u64> = map.try_into()?;
        let zeros = PerCpuValues::try_from(vec![0_u64; cpus])?;
        Ok(map.insert(PAIR, zeros, 0)?)
    }

    fn address(&self, ip: IpAddr, identity: u32) -> Result<()> {
        let IpAddr::V4(ip) = ip else {
            bail!("{ip} is no IPv4 address");
        };
        let key = AddressKey {
            ip: mapped(ip.octets()),
            port: 0,
            protocol: 0,
            zero: 0,
        };
        let peer = Peer {
            identity,
            ..Peer::default()
        };
        self.put("floor_address", &key, &row(key, peer))
    }

    fn allow(&mut self, destination: u32, port: u16, protocol: u8) -> Result<()> {
        let key = PolicyKey {
            source: CLIENT_NUMBER,
            destination,
            port,
            protocol,
            zero: 0,
        };
        let side = Side {
            rule: RULE,
            action: 1,
            ..Side::default()
        };
        let entry = Entry {
            now: side,
            would: side,
            ..Entry::default()
        };
        self.entries += 1;
        self.put("floor_policy", &key, &row::<_, _, 4>(key, entry))
    }

    fn put<K: aya::Pod, V: aya::Pod>(&self, name: &str, key: &K, value: &V) -> Result<()> {
        let map = map_data(self.ebpf.map(name).context("no such map")?)?;
        sys::map_update(map, key, value).with_context(|| name.to_owned())
    }

    /// Many rows in one call.
    pub fn put_all<K: aya::Pod, V: aya::Pod>(
        &self,
        name: &str,
        keys: &[K],
        values: &[V],
    ) -> Result<()> {
        let map = map_data(self.ebpf.map(name).context("no such map")?)?;
        sys::map_update_batch(map, keys, values)
            .map_err(|(_, error)| error)
            .with_context(|| name.to_owned())
    }

    fn attach(&mut self, hook: &str, place: &Place) -> Result<Box<dyn Any>> {
        let program = program(&mut self.ebpf, &format!("{}_{hook}", self.prefix))?;
        let cgroup = File::open(place.managed.path())?;
        let mode = CgroupAttachMode::Single;
        Ok(match program {
            Program::CgroupSock(program) => {
                let link = program.attach(&cgroup, mode)?;
                Box::new(program.take_link(link)?)
            }
            Program::CgroupSockAddr(program) => {
                let link = program.attach(&cgroup, mode)?;
                Box::new(program.take_link(link)?)
            }
            Program::CgroupSkb(program) => {
                let side = if hook == "egress" {
                    CgroupSkbAttachType::Egress
                } else {
                    CgroupSkbAttachType::Ingress
                };
                let link = program.attach(&cgroup, side, mode)?;
                Box::new(program.take_link(link)?)
            }
            Program::SchedClassifier(program) => {
                let side = if hook == "tc_to" {
                    TcAttachType::Egress
                } else {
                    TcAttachType::Ingress
                };
                let link = place.host.enter(|| Ok(program.attach(HOST_SIDE, side)?))?;
                Box::new(program.take_link(link)?)
            }
            _ => bail!("{hook}: no such hook"),
        })
    }

    /// Whether the programs found what they are there to look up: a call was
    /// counted, its flow is in the table, and a frame was of a flow.
    fn found(&self) -> Result<bool> {
        let counted: PerCpuHashMap<_, CountKey, u64> = self
            .ebpf
            .map("floor_count")
            .context("floor_count")?
            .try_into()?;
        let calls: u64 = match counted.get(&PAIR, 0) {
            Ok(counts) => counts.iter().sum(),
            Err(MapError::KeyNotFound) => 0,
            Err(error) => return Err(error.into()),
        };
        let flows = map_data(self.ebpf.map("floor_flow").context("floor_flow")?)?;
        // A call to the forbidden port finds no row, and its flow no frame.
        let mut key = None;
        for _ in 0..LOOKED_AT {
            key = sys::map_next_key::<FlowKey>(flows, key.as_ref())?;
            let Some(key) = &key else { break };
            let flow: Option<Flow> = sys::map_lookup(flows, key)?;
            if flow.is_some_and(|flow| flow.seen > 1) {
                return Ok(calls > 0);
            }
        }
        Ok(false)
    }
}

fn client() -> Workload {
    Workload {
        identity: CLIENT_NUMBER,
        ..Workload::default()
    }
}

fn row<K, V: Copy + Default, const PAD: usize>(key: K, value: V) -> Row<K, V, PAD> {
    Row::starting(key, value, 1)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    ebpf.program_mut(name)
        .with_context(|| format!("there is no program {name}"))
}

fn load(program: &mut Program) -> Result<()> {
    match program {
        Program::CgroupSock(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        Program::CgroupSkb(program) => program.load()?,
        Program::SchedClassifier(program) => program.load()?,
        _ => bail!("of an unknown kind"),
    }
    Ok(())
}

fn map_data(map: &Map) -> Result<BorrowedFd<'_>> {
    match map {
        Map::Array(map) | Map::HashMap(map) | Map::LruHashMap(map) => Ok(map.fd().as_fd()),
        _ => bail!("a map of another kind"),
    }
}

impl Rival for Floor {
    fn begin(&mut self, place: &Place) -> Result<()> {
        for hook in HOOKS {
            let link = self.attach(hook, place);
            self.links
                .push(link.with_context(|| format!("{}_{hook}", self.prefix))?);
        }
        Ok(())
    }

    fn hooks(&self) -> Hooks {
        Hooks {
            cgroup: 4,
            interface: 2,
        }
    }

    fn rest(&mut self) -> Result<()> {
        let looks_up = self.entries > 0;
        ensure!(
            self.found()? == looks_up,
            "the {} programs do not do what they are to be measured for",
            self.prefix
        );
        Ok(())
    }

    fn end(&mut self, _place: &Place) -> Result<()> {
        self.links.clear();
        Ok(())
    }

    fn entries(&self) -> usize {
        self.entries
    }
}
