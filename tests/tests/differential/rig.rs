//! What both tests need: real cgroups with a process in each, a node, and
//! random worlds that live in them.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use zt_agent::{
    kernel::sys,
    model::{Endpoint, Name, SpiffeId},
};
use zt_common::{
    codes::{Direction, Protocol},
    event::Event,
    flow::FlowKey,
    state::{Control, control_flags},
};
use zt_reference::{
    Question,
    generate::{NOW, World},
};
use zt_tests::{
    Sandbox, Workload,
    node::boot_offset,
    patience::fewer,
    pool::Lease,
    test_run::{Asker, Packet, Ran, Transport, tcp},
};

/// How much further ahead than generated the deadlines of the future lie, ns,
/// so that none passes while the test runs.
const FAR: u64 = 3_600_000_000_000;
/// Workloads of a generated world, at most.
const WORKLOADS: usize = 5;

/// The seed of this run.
pub fn seed() -> u64 {
    let given = std::env::var("ZT_SEED").ok();
    given.map_or_else(
        || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            since.as_secs() << 20 ^ u64::from(since.subsec_nanos())
        },
        |text| text.parse().expect("ZT_SEED is a number"),
    )
}

/// How much a run must have seen of something, where the usual number of worlds
/// shows `usual`: of a small sample less than its share, since it varies more. At
/// least 1.
pub fn at_least(usual: usize) -> usize {
    match fewer(usual) {
        all if all == usual => usual,
        share => (share / 3).max(1),
    }
}

/// Draws values from strategies: the same ones for the same seed.
pub struct Draw(TestRunner);

impl Draw {
    pub fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        Self(TestRunner::new_with_rng(Config::default(), rng))
    }

    pub fn one<S: Strategy>(&mut self, strategy: &S) -> S::Value {
        strategy.new_tree(&mut self.0).unwrap().current()
    }
}

/// See the module.
pub struct Rig {
    pub node: Lease,
    /// By the index of a world's workload.
    pub askers: Vec<Asker>,
    /// In a cgroup that nobody enrols.
    stranger: Asker,
    cgroups: Vec<u64>,
    stranger_cgroup: u64,
    egress: PathBuf,
    ingress: PathBuf,
    flows: [std::os::fd::OwnedFd; 2],
    quarantined: Vec<u32>,
    boot_offset: u64,
    /// Wall-clock time when the test began.
    began: u64,
    // Dropped after the processes in it.
    _sandbox: Sandbox,
}

impl Rig {
    pub fn new() -> Self {
        let sandbox = Sandbox::new().unwrap();
        // No socket lives here, so no packet is for somebody by accident.
        let netns = Arc::new(sandbox.netns("empty").unwrap());
        let workload = |name: &str| {
            let cgroup = sandbox.cgroup().child(name).unwrap();
            Workload::sharing(name, cgroup, Some(Arc::clone(&netns)))
        };
        let workloads: Vec<Workload> = (0..WORKLOADS).map(|n| workload(&format!("w{n}"))).collect();
        let stranger = workload("stranger");
        // Never attached: the only packets are those of the test runs.
        let node = Lease::take(&sandbox).unwrap();
        let flow_map = |name| sys::get_pinned(&node.pins.map(name)).unwrap();
        Self {
            askers: workloads.iter().map(|w| Asker::start(w).unwrap()).collect(),
            cgroups: workloads.iter().map(|w| w.cgroup().id().unwrap()).collect(),
            stranger_cgroup: stranger.cgroup().id().unwrap(),
            stranger: Asker::start(&stranger).unwrap(),
            egress: node.pin_program("zt_egress").unwrap(),
            ingress: node.pin_program("zt_ingress").unwrap(),
            flows: [flow_map("zt_flow_v1"), flow_map("zt_spill_v1")],
            quarantined: Vec::new(),
            boot_offset: boot_offset(),
            began: wall(boot_offset()),
            node,
            _sandbox: sandbox,
        }
    }

    /// A generated world, moved to this machine: its cgroups, and its clock.
    pub fn adapt(&self, world: &World) -> World {
        let mut world = world.clone();
        let model = &mut world.model;
        let mut moved = BTreeMap::new();
        for (workload, cgroup) in model.workloads.iter_mut().zip(&self.cgroups) {
            moved.insert(workload.cgroup, *cgroup);
            workload.cgroup = *cgroup;
        }
        for endpoint in &mut model.endpoints {
            endpoint.cgroup = endpoint.cgroup.map(|cgroup| moved[&cgroup]);
        }
        let generated = model.boot_offset;
        model.boot_offset = self.boot_offset;
        let rules = model
            .policies
            .iter_mut()
            .flat_map(|p| Arc::make_mut(&mut p.rules));
        for deadline in rules.filter_map(|rule| rule.expires.as_mut()) {
            *deadline = if *deadline > NOW {
                let ahead = *deadline - NOW;
                (self.began + FAR).saturating_add(ahead)
            } else {
                (*deadline + self.boot_offset).saturating_sub(generated)
            };
        }
        world
    }

    /// Makes an adapted world true.
    pub fn enter(&mut self, world: &World) {
        let control = self.node.store.control();
        let flags = if world.host_may_reach {
            control_flags::HOST_MAY_REACH
        } else {
            0
        };
        control.configure(&Control {
            flags,
            ..control.read()
        });
        self.node.apply(&world.model).unwrap();
        self.quarantine(&world.quarantined);
    }

    /// Quarantines these and nobody else.
    pub fn quarantine(&mut self, ids: &[SpiffeId]) {
        for number in self.quarantined.drain(..) {
            self.node.trust.set(number, false).unwrap();
        }
        // And every Service that leads to one of them.
        let is_meant = |name: &Name| name.identities().any(|id| ids.contains(id));
        let names = self.node.numbers.names();
        let meant = names.filter(|(name, _)| is_meant(name));
        self.quarantined = meant.map(|(_, number)| number).collect();
        for number in &self.quarantined {
            self.node.trust.set(*number, true).unwrap();
        }
    }

    /// Sends a packet of the question's flow past its local end.
    pub fn send(&mut self, question: &Question, transport: Transport) -> (Ran, Vec<Event>) {
        let packet = packet(question, transport);
        let program = match question.direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        };
        let asker = match question.local {
            Some(index) => &mut self.askers[index],
            None => &mut self.stranger,
        };
        let ran = asker.run(program, &packet).unwrap();
        (ran, self.node.events())
    }

    /// The question, asked now.
    pub fn now(&self, question: &Question) -> Question {
        Question {
            now: wall(self.boot_offset),
            ..question.clone()
        }
    }

    /// The cgroup of a question's local end.
    pub fn cgroup(&self, question: &Question) -> u64 {
        question
            .local
            .map_or(self.stranger_cgroup, |index| self.cgroups[index])
    }

    /// Forgets the flow of a question, so that its next packet is the first.
    pub fn forget(&self, question: &Question) {
        use std::os::fd::AsFd;
        let key = FlowKey {
            remote: match question.remote {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            },
            cgroup: self.cgroup(question),
            remote_port: question.remote_port,
            local_port: question.local_port,
            protocol: question.protocol as u8,
            zero: [0; 3],
        };
        for map in &self.flows {
            sys::map_delete(map.as_fd(), &key).unwrap();
        }
    }
}

/// Whether a workload of this node is at the other end, by the claims alone: it
/// is the one claimant of the port or, where nobody else claims anything there,
/// of the whole address.
pub fn is_far_governed(world: &World, question: &Question) -> bool {
    let (model, ip) = (&world.model, question.remote.to_canonical());
    let claims = model.endpoints.iter();
    let claims: Vec<&Endpoint> = claims.filter(|e| e.ip.to_canonical() == ip).collect();
    let asked = (question.protocol, question.remote_port);
    let declares = |claim: &&Endpoint| claim.ports.iter().flatten().any(|port| *port == asked);
    let of_the_port: Vec<&Endpoint> = claims.iter().copied().filter(declares).collect();
    let is_node = model.node_addresses.iter().any(|a| a.to_canonical() == ip);
    let deciding = match &of_the_port[..] {
        [] if is_node || claims.iter().all(|claim| claim.ports.is_some()) => return false,
        [] => claims,
        _ => of_the_port,
    };
    let claimant = |claim: &Endpoint| (claim.party.clone(), claim.cgroup, claim.target);
    let first = claimant(deciding[0]);
    deciding.iter().all(|claim| claimant(claim) == first) && first.1.is_some()
}

/// Wall-clock time by the kernel's boot clock, nanoseconds.
fn wall(boot_offset: u64) -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    let part = |number: i64| u64::try_from(number).unwrap();
    boot_offset + part(now.tv_sec()) * 1_000_000_000 + part(now.tv_nsec())
}

/// How a question's flow begins.
pub fn opening(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp { flags: tcp::SYN },
        Protocol::Udp => Transport::Udp,
        Protocol::Icmp => Transport::Echo,
    }
}

fn packet(question: &Question, transport: Transport) -> Packet {
    let local: IpAddr = match question.remote {
        IpAddr::V4(_) => "10.99.99.99".parse().unwrap(),
        IpAddr::V6(_) => "fd99::99".parse().unwrap(),
    };
    let (here, there) = (
        (local, question.local_port),
        (question.remote, question.remote_port),
    );
    let (from, to) = match question.direction {
        Direction::Egress => (here, there),
        Direction::Ingress => (there, here),
    };
    Packet {
        source: from.0,
        source_port: from.1,
        destination: to.0,
        destination_port: to.1,
        transport,
    }
}
