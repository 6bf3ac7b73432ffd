//! One node: a virtual machine that ends with this program.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use zt_tests::cluster::child;

use super::place::Place;
use super::shell::Shell;
use crate::vm::initramfs::Tree;
use crate::vm::kernels::Kernel;
use crate::vm::machine::{Accelerator, KERNEL_ARGUMENTS, Machine};
use crate::{setup, workspace};

/// Two nodes on two processors: with more, virtual ones would wait for one another.
const CPUS: usize = 1;
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

/// What machines are started with.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The kernel.
    pub image: PathBuf,
    /// See [`write_first`].
    pub first: PathBuf,
    /// Every node has a copy of it for itself.
    pub root: PathBuf,
    /// What all of them read.
    pub disk: PathBuf,
    /// For the copies, and the sockets by which nodes are reached.
    pub directory: PathBuf,
}

/// A running machine.
pub struct Node {
    pub place: Place,
    pub shell: Shell,
    /// Of loopback; leads to its kubelet.
    pub kubelet: u16,
    parts: Parts,
    root: PathBuf,
    boots: usize,
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
    pub fn start(place: Place, parts: &Parts) -> Result<Self> {
        let root = parts.directory.join(format!("root-{place}"));
        let mut copy = Command::new("cp");
        copy.arg("--sparse=always").args([&parts.root, &root]);
        ensure!(
            copy.status().context("cp")?.success(),
            "no disk for {place}"
        );
        let kubelet = free_port()?;
        let shell = parts.directory.join(format!("shell-{place}"));
        let machine = child::start(emulator(place, parts, &root, kubelet, 1)?)?;
        Ok(Self {
            place,
            shell: Shell::at(&shell),
            kubelet,
            parts: parts.clone(),
            root,
            boots: 1,
            machine,
        })
    }

    /// Cuts its power, and gives it back: nothing is tidied up, and what it did not
    /// write yet is lost. (A machine that resets itself does not always come back
    /// under emulation.)
    pub fn cycle(&mut self) -> Result<()> {
        child::end(&mut self.machine)?;
        self.boots += 1;
        let again = emulator(
            self.place,
            &self.parts,
            &self.root,
            self.kubelet,
            self.boots,
        )?;
        self.machine = child::start(again)?;
        Ok(())
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
            console(self.place, self.boots).display()
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

fn console(place: Place, boot: usize) -> PathBuf {
    let logs = workspace::root().join("target/machines/nodes");
    logs.join(format!("{place}-{boot}.log"))
}

fn emulator(
    place: Place,
    parts: &Parts,
    root: &Path,
    kubelet: u16,
    boot: usize,
) -> Result<Command> {
    let console = console(place, boot);
    let logs = console.parent().context("a directory of logs")?;
    std::fs::create_dir_all(logs).with_context(|| logs.display().to_string())?;
    let log = std::fs::File::create(console.with_extension("qemu.log"))?;
    let machine = Machine {
        image: parts.image.clone(),
        initramfs: parts.first.clone(),
        console,
        accelerator: Accelerator::Emulation,
        cpus: CPUS,
        memory_mib: MEMORY_MIB,
    };
    let arguments =
        format!("{KERNEL_ARGUMENTS} quiet systemd.show_status=0 net.ifnames=0 zt_node={place}");
    let mut command = machine.emulator(&arguments);
    for (name, disk, how) in [("root", root, ""), ("parts", &parts.disk, ",readonly=on")] {
        let disk = disk.display();
        command.arg("-drive");
        command.arg(format!("file={disk},id={name},if=none,format=raw{how}"));
        command.args(["-device", &format!("virtio-blk-pci,drive={name}")]);
    }
    let number = place.number();
    let forward = format!("hostfwd=tcp:127.0.0.1:{kubelet}-10.0.2.15:{KUBELET}");
    let other = if place == Place::A {
        Place::B
    } else {
        Place::A
    };
    let at = |what: &str, place: Place| parts.directory.join(format!("{what}-{place}"));
    let between = format!(
        "dgram,id=between,local.type=unix,local.path={},remote.type=unix,remote.path={}",
        at("between", place).display(),
        at("between", other).display()
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
    let shell = at("shell", place);
    let port = format!(
        "socket,id=shell,path={},server=on,wait=off",
        shell.display()
    );
    command
        .args(["-device", "virtio-serial-pci", "-chardev", &port])
        .args(["-device", "virtserialport,chardev=shell,nr=1,name=shell"]);
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(command)
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}
