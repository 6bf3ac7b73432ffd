//! Our programs and maps, with the sizes that the agent gives them, without
//! the agent: nothing happens while it is measured but what the kernel does.

use anyhow::{Result, ensure};
use zt_agent::{
    document::config::Limits,
    kernel::{frames, links, load::MapSizes},
    model::Mode,
};
use zt_common::state::Control;
use zt_tests::{
    Sandbox,
    node::{Node, World, allow},
};

use super::{
    hooks::Hooks,
    place::{CLIENT, PORT, Place, SERVER},
    rival::Rival,
};
use crate::{PORTS, endpoint, peer, ports};

pub struct Ours {
    node: Node,
    entries: usize,
    // Dropped after the node, whose pins are in it.
    _home: Sandbox,
}

impl Ours {
    pub fn audit(place: &Place) -> Result<Self> {
        Self::new(place, Mode::Audit, 1)
    }

    /// With so many entries for TCP, and one more for UDP.
    pub fn enforce(place: &Place, entries: u32) -> Result<Self> {
        Self::new(place, Mode::Enforce, entries)
    }

    fn new(place: &Place, mode: Mode, entries: u32) -> Result<Self> {
        let home = Sandbox::new()?;
        let mut node = node(&home, place)?;
        node.apply(&world(place, mode, entries)?.model)?;
        Ok(Self {
            entries: node.store.current().policy.len(),
            node,
            _home: home,
        })
    }
}

/// Governs nobody yet; `home` has its pins.
pub fn node(home: &Sandbox, place: &Place) -> Result<Node> {
    let limits = Limits::default();
    let node = Node::make(home, &place.managed, &MapSizes::from(&limits))?;
    let control = node.store.control();
    control.configure(&Control {
        flow_share: limits.flow_share.into(),
        ..control.read()
    });
    Ok(node)
}

/// The client, the server, and others that make up the number of entries.
pub fn world(place: &Place, mode: Mode, entries: u32) -> Result<World> {
    let mut world = World::default()
        .enrol(&place.party, &[CLIENT])
        .connect_from(&place.host, &place.party)?
        .claim(endpoint(SERVER, "server"));
    for number in 0..entries / u32::from(PORTS) {
        world = world.claim(peer(number));
    }
    let (own, others) = (format!("[{PORT}]"), format!("{:?}", ports()));
    world.mode(mode).rules(&format!(
        "[{}, {}, {}]",
        allow("client", "server", &own, "TCP"),
        allow("client", "server", &own, "UDP"),
        allow("client", "peer/*", &others, "TCP"),
    ))
}

impl Rival for Ours {
    fn begin(&mut self, place: &Place) -> Result<()> {
        self.node.attach()?;
        self.node.cover_from(&place.host, &place.party)
    }

    fn hooks(&self) -> Hooks {
        Hooks {
            cgroup: links::POINTS.len(),
            interface: frames::POINTS.len(),
        }
    }

    /// The agent reads the ring all the time; here it must only not fill up.
    fn rest(&mut self) -> Result<()> {
        self.node.events();
        let lost = self.node.counters.totals()?.lost_ring;
        ensure!(lost == 0, "{lost} events found no room in the ring");
        Ok(())
    }

    fn end(&mut self, _place: &Place) -> Result<()> {
        self.node.uncover()?;
        self.node.detach_all()
    }

    fn entries(&self) -> usize {
        self.entries
    }
}
