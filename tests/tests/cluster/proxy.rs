//! A real kube-proxy in the network namespace of a node.

use std::{process::Child, time::Duration};

use zt_tests::cluster::{Programs, child};

use crate::stage::{Pod, Stage};

const END: Duration = Duration::from_secs(5);
/// Of the node towards its pods.
const GATEWAY: u8 = 1;

/// While it is kept.
pub struct Proxy(Child);

impl Proxy {
    /// Has the node route for its pods, as nodes do, and kube-proxy lead
    /// elsewhere what they send to Services.
    pub fn start(stage: &Stage<'_>) -> Self {
        let node = stage.network.bridge();
        let gateway = format!("{}/24", stage.network.ipv4(GATEWAY));
        node.ip(&["address", "add", &gateway, "dev", "br0"])
            .unwrap();
        node.set("net/ipv4/ip_forward", "1").unwrap();
        // A pod may be behind the interface that the packet came from.
        node.set("net/ipv4/conf/br0/send_redirects", "0").unwrap();
        node.set("net/ipv4/conf/all/send_redirects", "0").unwrap();
        let programs = Programs::from_environment().unwrap().unwrap();
        let mut command = programs.part_inside("kube-proxy", node);
        for (name, value) in [
            ("kubeconfig", stage.cluster.kubeconfig().to_str().unwrap()),
            ("hostname-override", &stage.node),
            ("proxy-mode", "nftables"),
            // What is the whole machine's stays as it is.
            ("conntrack-max-per-core", "0"),
            ("conntrack-min", "0"),
            ("conntrack-tcp-timeout-established", "0"),
            ("conntrack-tcp-timeout-close-wait", "0"),
            ("healthz-bind-address", "127.0.0.1:10256"),
            ("metrics-bind-address", "127.0.0.1:10249"),
        ] {
            command.arg(format!("--{name}={value}"));
        }
        let log = format!("kube-proxy-{}", stage.node);
        Self(stage.cluster.spawn(command, &log).unwrap())
    }
}

/// Has a pod send everything to its node, and nothing to a neighbour directly:
/// what comes back from a Service must pass where it was led elsewhere.
pub fn route(stage: &Stage<'_>, pod: &Pod) {
    let netns = pod.workload.netns().unwrap();
    let gateway = stage.network.ipv4(GATEWAY).to_string();
    let subnet = format!("{}/24", stage.network.ipv4(0));
    netns
        .ip(&["route", "add", &gateway, "dev", "eth0"])
        .unwrap();
    netns
        .ip(&["route", "delete", &subnet, "dev", "eth0"])
        .unwrap();
    netns
        .ip(&["route", "add", "default", "via", &gateway])
        .unwrap();
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = child::stop(&mut self.0, END);
    }
}
