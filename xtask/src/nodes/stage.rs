//! The whole cluster: a control plane on loopback, and nodes in virtual machines.

use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use zt_tests::cluster::{Answer, Cluster, Controllers, Outside, Programs, User};

use super::files::Credentials;
use super::node::{self, Node};
use super::parts::Parts;
use super::place::Place;
use super::{relay, root};
use crate::kubernetes::Kubernetes;
use crate::step::Steps;
use crate::vm::kernels::Kernel;
use crate::vm::suite::Suite;
use zt_tests::interrupt;

/// What a machine's network has in the place of ours.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// For whatever an emulated node has to do, beside others who build.
pub const PATIENT: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_secs(1);

/// What a cluster is made from.
pub struct Made<'a> {
    pub kubernetes: &'a Kubernetes,
    pub kernel: &'a Kernel,
    pub programs: &'a Suite,
}

/// Dropped in the order of the fields: nodes first.
pub struct Stage {
    pub nodes: Vec<Node>,
    _controllers: Controllers,
    pub cluster: Cluster,
}

impl Stage {
    /// Starts all of it, and waits until the nodes are ready.
    pub fn start(steps: &Steps, made: &Made<'_>, directory: &Path) -> Result<Self> {
        let root = root::disk(steps)?;
        let kubelet =
            Place::ALL.map(|place| User::new(&format!("system:node:{place}"), &["system:nodes"]));
        let proxy = User::new("system:kube-proxy", &[])?;
        let mut users = vec![proxy];
        for user in kubelet {
            users.push(user?);
        }
        let outside = Outside {
            address: OUTSIDE,
            relay: directory.join("relay"),
            users,
        };
        let programs = Programs {
            kubernetes: made.kubernetes.binary.clone(),
            etcd: made.kubernetes.etcd.clone(),
        };
        let (cluster, controllers) = steps.check("Start the control plane", || {
            let cluster = Cluster::start_with(&programs, Some(&outside))?;
            let controllers = cluster.start_controllers()?;
            Ok((cluster, controllers))
        })?;
        let credentials: Vec<(Place, Credentials)> = Place::ALL
            .into_iter()
            .zip(&outside.users[1..])
            .map(|(place, user)| {
                Ok((
                    place,
                    Credentials {
                        kubelet: cluster.kubeconfig_of(user, OUTSIDE)?,
                        proxy: cluster.kubeconfig_of(&outside.users[0], OUTSIDE)?,
                    },
                ))
            })
            .collect::<Result<_>>()?;
        let parts = Parts {
            kubernetes: made.kubernetes,
            kernel: made.kernel,
            programs: made.programs,
            credentials: &credentials,
        };
        let parts = node::Parts {
            image: made.kernel.image.clone(),
            first: directory.join("first.cpio"),
            root,
            disk: parts.write(steps, directory)?,
            directory: directory.to_owned(),
        };
        node::write_first(&parts.first, made.kernel)?;
        let mut stage = Self {
            nodes: Vec::new(),
            _controllers: controllers,
            cluster,
        };
        for place in Place::ALL {
            stage.create(&node_object(place))?;
        }
        for place in Place::ALL {
            stage.nodes.push(Node::start(place, &parts)?);
        }
        let forwards = stage
            .nodes
            .iter()
            .map(|node| (format!("{}:{}", node.place, node::KUBELET), node.kubelet));
        relay::start(&outside.relay, forwards.collect())?;
        steps.check("Boot the nodes until they are ready", || {
            for place in Place::ALL {
                stage.until(&format!("{place} is ready"), |stage| stage.is_ready(place))?;
            }
            Ok(())
        })?;
        Ok(stage)
    }

    pub fn is_ready(&self, place: Place) -> Result<bool> {
        let ready = "-o=jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        Ok(self.get(&["node", place.name(), ready])? == "True")
    }

    pub fn node(&self, place: Place) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.place == place)
            .context("no such node")
    }

    /// Cuts a node's power, and gives it back.
    pub fn cycle(&mut self, place: Place) -> Result<()> {
        let mut nodes = self.nodes.iter_mut();
        let node = nodes.find(|node| node.place == place);
        node.context("no such node")?.cycle()
    }

    /// Waits until something is so. What cannot be asked for now is asked for again.
    pub fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENT;
        loop {
            interrupt::check()?;
            for node in &mut self.nodes {
                node.check()?;
            }
            let answer = is_so(self);
            if let Ok(true) = answer {
                return Ok(());
            }
            if Instant::now() >= deadline {
                answer.with_context(|| format!("not so after {} s: {what}", PATIENT.as_secs()))?;
                bail!("not so after {} s: {what}", PATIENT.as_secs());
            }
            thread::sleep(LOOK);
        }
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Result<Answer> {
        interrupt::check()?;
        self.cluster.kubectl(arguments)
    }

    pub fn get(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl(&[&["get"], arguments].concat())?.ok()
    }

    pub fn create(&self, object: &Value) -> Result<()> {
        self.cluster.apply(&object.to_string())?.ok()?;
        Ok(())
    }
}

/// Made before the node joins, so that its range is the one that its neighbours have
/// a route to.
fn node_object(place: Place) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": place.name(), "labels": {"kubernetes.io/hostname": place.name()}},
        "spec": {"podCIDR": place.pods(), "podCIDRs": [place.pods()]},
    })
}
