//! One node: a virtual machine that ends with this program.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use zt_tests::cluster::child;

use super::place::Place;
use super::shell::Shell;
use crate::vm::initramfs::Tree;
use crate::vm::kernels::Kernel;
use crate::vm::machine::{Accelerator, KERNEL_ARGUMENTS, Machine};
use crate::{setup, workspace};

const CPUS: usize = 2;
const MEMORY_MIB: usize = 3072;

/// The first process: finds the disks, puts the files of this run in their places,
/// and leaves the rest to systemd. Its environment has the node's name.
const FIRST: &str = r#"#!/bin/sh
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
modprobe virtio_blk
while ! [ -b /dev/vda ] || ! [ -b /dev/vdb ]; do sleep 0.1; done
mount -t ext4 /dev/vda /root
mkdir -p /root/parts
mount -t ext4 -o ro /dev/vdb /root/parts
mount --bind /root/parts/modules /root/usr/lib/modules
cp -a /root/parts/files/. /root/
cp -a /root/parts/nodes/$zt_node/. /root/
exec switch_root /root /lib/systemd/systemd
"#;

const TOOLS: [&str; 7] = [
    "cp",
    "mkdir",
    "modprobe",
    "mount",
    "sh",
    "sleep",
    "switch_root",
];

/// What the kubelet listens on.
pub const KUBELET: u16 = 10250;

/// The disks that a machine reads.
#[derive(Clone, Debug)]
pub struct Disks {
    /// Every node has it for itself; what one writes there goes with its machine.
    pub root: PathBuf,
    pub parts: PathBuf,
}

/// A running machine.
pub struct Node {
    pub place: Place,
    pub shell: Shell,
    /// Of loopback; leads to its kubelet.
    pub kubelet: u16,
    console: PathBuf,
    machine: Child,
}

/// The first file system, for all nodes.
pub fn write_first(path: &Path, kernel: &Kernel) -> Result<()> {
    let file = std::fs::File::create(path).with_context(|| path.display().to_string())?;
    let mut tree = Tree::new(std::io::BufWriter::new(file))?;
    tree.file(Path::new("/init"), FIRST.as_bytes())?;
    for tool in TOOLS {
        tree.tool(&setup::program(tool)?)?;
    }
    tree.modules(kernel, |path| {
        path.starts_with("virtio_blk.") || path.starts_with("modules.")
    })?;
    tree.finish()
}

impl Node {
    /// Starts it; its network leads to the control plane and to the other nodes.
    pub fn start(
        place: Place,
        kernel: &Kernel,
        first: &Path,
        disks: &Disks,
        directory: &Path,
    ) -> Result<Self> {
        let kubelet = free_port()?;
        let logs = workspace::root().join("target/machines/nodes");
        std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
        let at = |what: &str| directory.join(format!("{what}-{place}"));
        let machine = Machine {
            image: kernel.image.clone(),
            initramfs: first.to_owned(),
            console: logs.join(format!("{place}.log")),
            accelerator: Accelerator::Emulation,
            cpus: CPUS,
            memory_mib: MEMORY_MIB,
        };
        let arguments =
            format!("{KERNEL_ARGUMENTS} quiet systemd.show_status=0 net.ifnames=0 zt_node={place}");
        let mut command = machine.emulator(&arguments);
        for (name, disk, how) in [
            ("root", &disks.root, "snapshot=on"),
            ("parts", &disks.parts, "readonly=on"),
        ] {
            let disk = disk.display();
            command.arg("-drive");
            command.arg(format!("file={disk},id={name},if=none,format=raw,{how}"));
            command.args(["-device", &format!("virtio-blk-pci,drive={name}")]);
        }
        let number = place.number();
        let forward = format!("hostfwd=tcp:127.0.0.1:{kubelet}-10.0.2.15:{KUBELET}");
        let other = if place == Place::A {
            Place::B
        } else {
            Place::A
        };
        let others = directory.join(format!("between-{other}"));
        let between = format!(
            "dgram,id=between,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            at("between").display(),
            others.display()
        );
        for (name, netdev, mac) in [
            (
                "outside",
                format!("user,id=outside,ipv6=off,{forward}"),
                "52:54:00:10:00:0",
            ),
            ("between", between, "52:54:00:20:00:0"),
        ] {
            command.args(["-netdev", &netdev]);
            let device = format!("virtio-net-pci,netdev={name},mac={mac}{number},romfile=");
            command.args(["-device", &device]);
        }
        let shell = at("shell");
        let port = format!(
            "socket,id=shell,path={},server=on,wait=off",
            shell.display()
        );
        command
            .args(["-device", "virtio-serial-pci", "-chardev", &port])
            .args(["-device", "virtserialport,chardev=shell,nr=1,name=shell"]);
        let log = std::fs::File::create(logs.join(format!("{place}.qemu.log")))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Self {
            place,
            shell: Shell::at(&shell),
            kubelet,
            console: machine.console,
            machine: child::start(command)?,
        })
    }

    /// Runs a command on the node as a person with a root shell would.
    pub fn sh(&self, command: &str) -> Result<String> {
        self.shell
            .run(command, Duration::from_secs(120))
            .with_context(|| self.place.to_string())
    }

    /// An error once the machine has ended.
    pub fn check(&mut self) -> Result<()> {
        let ended = self.machine.try_wait()?;
        ensure!(
            ended.is_none(),
            "the machine of {} has ended: {}",
            self.place,
            self.console.display()
        );
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = child::end(&mut self.machine) {
            eprintln!("the machine of {} is not gone: {error:#}", self.place);
        }
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}
