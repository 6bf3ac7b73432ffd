//! The files that make a Debian a node of this cluster.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};

use super::place::Place;

pub const PAUSE_IMAGE: &str = "localhost/pause:1";
/// Of all pods.
pub const POD_RANGE: &str = "10.244.0.0/16";

const KUBELET: &str = r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: systemd
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
# Only the way through the machine's own forwarded port leads here.
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
resolvConf: /etc/resolv.conf
nodeStatusUpdateFrequency: 10s
runtimeRequestTimeout: 10m
# Nobody is evicted here, and to look for whom takes an emulated node long.
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
localStorageCapacityIsolation: false
volumeStatsAggPeriod: -1s
"#;

const CONTAINERD: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "PAUSE"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/opt/cni/bin"
  conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
"#;

const NETWORK: &str = r#"{
  "cniVersion": "0.4.0", "name": "pods",
  "plugins": [{
    "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
    "ipam": {
      "type": "host-local",
      "ranges": [[{"subnet": "RANGE"}]],
      "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}
"#;

/// Each with what of it systemd is to start it after.
const UNITS: [(&str, &str); 5] = [
    (
        "node-network.service",
        "[Unit]\nBefore=containerd.service kubelet.service\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/local/sbin/node-network\n",
    ),
    (
        "node-images.service",
        // Once: containerd has them after a reboot, which has enough to do.
        "[Unit]\nAfter=containerd.service\nRequires=containerd.service\n\
         ConditionPathExists=!/var/lib/node-images\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=600\n\
         ExecStart=/bin/sh -ec 'for image in /parts/images/*; do ctr -n k8s.io images import $image; done'\n\
         ExecStartPost=/bin/touch /var/lib/node-images\n",
    ),
    (
        "kubelet.service",
        "[Unit]\nAfter=containerd.service node-network.service\nStartLimitIntervalSec=0\n\
         [Service]\nRestart=always\nRestartSec=2\nEnvironmentFile=/etc/kubernetes/node\n\
         ExecStart=/parts/bin/kubernetes kubelet --housekeeping-interval=60s --config=/etc/kubernetes/kubelet.yaml \
         --kubeconfig=/etc/kubernetes/kubelet.conf --hostname-override=${NAME} --node-ip=${ADDRESS}\n",
    ),
    (
        "kube-proxy.service",
        "[Unit]\nAfter=node-network.service\nStartLimitIntervalSec=0\n\
         [Service]\nRestart=always\nRestartSec=2\nEnvironmentFile=/etc/kubernetes/node\n\
         ExecStart=/parts/bin/kubernetes kube-proxy --proxy-mode=nftables --cluster-cidr=RANGE \
         --kubeconfig=/etc/kubernetes/proxy.conf --hostname-override=${NAME}\n",
    ),
    (
        "node-shell.service",
        "[Unit]\nStartLimitIntervalSec=0\nDefaultDependencies=no\n\
         [Service]\nRestart=always\nRestartSec=1\nEnvironment=HOME=/root TERM=dumb\n\
         ExecStart=/bin/sh -c 'exec sh <>$$(echo /dev/vport*p1) >&0 2>&0'\n",
    ),
];

/// Go programs collect garbage less often: they have the memory, and an emulated node
/// has not the time.
const DROP_IN: &str = "[Service]\nEnvironment=GOGC=400\n";
const GO_UNITS: [&str; 3] = ["containerd", "kubelet", "kube-proxy"];

/// Timers and terminals that an emulated node need not spend its time on.
const MASKED: [&str; 7] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
];

/// What all nodes have.
pub fn write_common(root: &Path) -> Result<()> {
    let units = root.join("etc/systemd/system");
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted)?;
    for (name, text) in UNITS {
        file(&units.join(name), &text.replace("RANGE", POD_RANGE))?;
        symlink(units_path(name), wanted.join(name))?;
    }
    for name in GO_UNITS {
        file(&units.join(format!("{name}.service.d/go.conf")), DROP_IN)?;
    }
    for name in MASKED {
        symlink("/dev/null", units.join(name))?;
    }
    file(&root.join("etc/kubernetes/kubelet.yaml"), KUBELET)?;
    let containerd = CONTAINERD.replace("PAUSE", PAUSE_IMAGE);
    file(&root.join("etc/containerd/config.toml"), &containerd)?;
    // Nobody is asked for names.
    file(&root.join("etc/resolv.conf"), "nameserver 127.0.0.1\n")
}

fn units_path(name: &str) -> String {
    format!("/etc/systemd/system/{name}")
}

/// Tokens of a node, as files that its programs read.
pub struct Credentials {
    pub kubelet: String,
    pub proxy: String,
}

/// What one node has.
pub fn write_node(
    root: &Path,
    place: Place,
    others: &[Place],
    credentials: &Credentials,
) -> Result<()> {
    let (name, address) = (place.name(), place.address());
    file(&root.join("etc/hostname"), &format!("{name}\n"))?;
    file(
        &root.join("etc/kubernetes/node"),
        &format!("NAME={name}\nADDRESS={address}\n"),
    )?;
    file(
        &root.join("etc/kubernetes/kubelet.conf"),
        &credentials.kubelet,
    )?;
    file(&root.join("etc/kubernetes/proxy.conf"), &credentials.proxy)?;
    let network = NETWORK.replace("RANGE", &place.pods());
    file(&root.join("etc/cni/net.d/10-pods.conflist"), &network)?;
    let script = root.join("usr/local/sbin/node-network");
    file(&script, &network_script(place, others))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The first interface leads to the control plane and nowhere else, as there is no
/// default route; the second to the other nodes. Debian has the plugins elsewhere
/// than everybody else.
fn network_script(place: Place, others: &[Place]) -> String {
    let mut script = format!(
        "#!/bin/sh\nset -e\n\
         modprobe overlay\nmodprobe br_netfilter\nmodprobe virtio_net\n\
         echo 1 >/proc/sys/net/ipv4/ip_forward\n\
         echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables\n\
         for i in 1 2 3 4 5 6 7 8 9 10; do [ -e /sys/class/net/eth1 ] && break; sleep 1; done\n\
         ip link set eth0 up\nip address add 10.0.2.15/24 dev eth0\n\
         ip link set eth1 up\nip address add {}/24 dev eth1\n\
         ip route add 10.96.0.0/16 dev eth0\n\
         mkdir -p /opt/cni/bin\nln -sf /usr/lib/cni/* /opt/cni/bin/\n",
        place.address()
    );
    for other in others {
        script += &format!("ip route add {} via {}\n", other.pods(), other.address());
    }
    script
}

/// Writes a file and what it lies in.
pub fn file(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_its_own_range_and_the_ways_to_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write_common(root).unwrap();
        let credentials = Credentials {
            kubelet: "{}".to_owned(),
            proxy: "{}".to_owned(),
        };
        write_node(root, Place::A, &[Place::B], &credentials).unwrap();
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        assert!(read("etc/cni/net.d/10-pods.conflist").contains("10.244.1.0/24"));
        let script = read("usr/local/sbin/node-network");
        assert!(script.contains("10.20.0.11/24"), "{script}");
        assert!(
            script.contains("route add 10.244.2.0/24 via 10.20.0.12"),
            "{script}"
        );
        assert!(
            script.contains("ln -sf /usr/lib/cni/* /opt/cni/bin/\n"),
            "{script}"
        );
        // Nothing else can be reached by it.
        assert!(!script.contains("default"), "{script}");
        for name in UNITS.map(|(name, _)| name) {
            let wanted = root
                .join("etc/systemd/system/multi-user.target.wants")
                .join(name);
            assert!(wanted.symlink_metadata().is_ok(), "{name} is not started");
        }
    }
}
