//! Workloads `a` and `b` of this node, and a machine outside that nobody
//! enrolled, all on one network.

use std::{net::IpAddr, sync::Arc, time::Duration};

use zt_common::{
    codes::{Reason, Verdict},
    event::Event,
};
use zt_tests::{Sandbox, Workload, cgroup::Cgroup, node::World, pool::Lease};

/// For what must answer.
pub const PATIENT: Duration = Duration::from_secs(2);
/// For what must not.
pub const SHORT: Duration = Duration::from_millis(300);
pub const PORT: u16 = 8080;

/// See the module.
pub struct Lab {
    pub a: Workload,
    pub b: Workload,
    pub outside: Workload,
    // Dropped after the workloads.
    pub sandbox: Sandbox,
    managed: Cgroup,
}

impl Lab {
    pub fn new() -> Self {
        let sandbox = Sandbox::new().unwrap();
        let network = sandbox.network(7).unwrap();
        let managed = sandbox.cgroup().child("managed").unwrap();
        let elsewhere = sandbox.cgroup().child("elsewhere").unwrap();
        let workload = |name: &str, cgroup: &Cgroup, host| {
            let netns = Arc::new(network.join(name, host).unwrap());
            let cgroup = cgroup.child(name).unwrap();
            Workload::sharing(name, cgroup, Some(netns))
        };
        Self {
            a: workload("a", &managed, 10),
            b: workload("b", &managed, 20),
            outside: workload("outside", &elsewhere, 30),
            managed,
            sandbox,
        }
    }

    /// Both addresses of host 10, 20 or 30.
    pub fn ips(host: u8) -> [IpAddr; 2] {
        [
            format!("10.89.7.{host}").parse().unwrap(),
            format!("fd00:89:7::{host}").parse().unwrap(),
        ]
    }

    /// `a` and `b` with their addresses.
    pub fn world(&self) -> World {
        World::default()
            .enrol(&self.a, &Self::ips(10))
            .enrol(&self.b, &Self::ips(20))
    }

    /// The programs are attached and `world` is in force.
    pub fn node(&self, world: &World) -> Lease {
        let mut node = Lease::below(&self.sandbox, &self.managed).unwrap();
        node.apply(&world.model).unwrap();
        node.attach().unwrap();
        node
    }
}

/// The reasons of all denials.
pub fn denials(events: &[Event]) -> Vec<Reason> {
    let denied = |event: &&Event| event.verdict == Verdict::Deny as u8;
    let reasons = events.iter().filter(denied);
    reasons
        .map(|event| Reason::from_code(event.reason).unwrap())
        .collect()
}
