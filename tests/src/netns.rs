//! Network namespaces of our own, and a bridge between them that has a namespace
//! of its own, too: nothing touches the initial namespace.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Where `ip netns` keeps its namespaces.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// A named network namespace with loopback up.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    pub(crate) fn make(name: String) -> Result<Self> {
        ip(&["netns", "add", &name])?;
        let path = Path::new(DIRECTORY).join(&name);
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        let netns = Self { name, file };
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// The name under which `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that setns(2) takes.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", self.name.as_str()], arguments].concat())
    }

    /// Gives `eth0` a further address, of one of the network's prefixes.
    pub fn add_address(&self, address: IpAddr) -> Result<()> {
        match address {
            IpAddr::V4(_) => {
                let address = format!("{address}/24");
                self.ip(&["address", "add", &address, "dev", "eth0"])
            }
            IpAddr::V6(_) => {
                // Without nodad the address is not usable for about a second.
                let address = format!("{address}/64");
                self.ip(&["address", "add", &address, "dev", "eth0", "nodad"])
            }
        }
    }

    /// Runs a closure on a thread of its own inside the namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).context("setns")?;
            work()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// The kernel's cookie of the namespace, as BPF programs see it.
    pub fn cookie(&self) -> Result<u64> {
        self.enter(netns_cookie)
    }

    /// Lets every group use ICMP datagram sockets, as distributions do.
    pub fn allow_ping(&self) -> Result<()> {
        self.set("net/ipv4/ping_group_range", "0 2147483647")
    }

    /// Sets one of its own variables of the kernel, such as
    /// `net/ipv4/ip_forward`.
    pub fn set(&self, variable: &str, value: &str) -> Result<()> {
        self.enter(|| {
            let file = format!("/proc/sys/{variable}");
            fs::write(&file, value).context(file)
        })
    }
}

fn netns_cookie() -> Result<u64> {
    let family = AddressFamily::Inet;
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie))?;
    // SAFETY: the pointers are to locals that outlive the call, and `length` is
    // the size of what `cookie` points to.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    nix::errno::Errno::result(result).context("SO_NETNS_COOKIE")?;
    Ok(cookie)
}

/// A bridge in a namespace of its own, with one IPv4 and one IPv6 prefix.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    subnet: u8,
    bridge: Arc<Netns>,
}

impl Network {
    /// Every namespace's name starts with `prefix`; the subnet is the third
    /// number of its addresses.
    pub(crate) fn make(prefix: &str, subnet: u8) -> Result<Self> {
        let bridge = Netns::make(format!("{prefix}-bridge{subnet}"))?;
        bridge.ip(&[
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "mcast_snooping",
            "0",
        ])?;
        bridge.ip(&["link", "set", "br0", "up"])?;
        Ok(Self {
            prefix: prefix.to_owned(),
            subnet,
            bridge: Arc::new(bridge),
        })
    }

    /// 10.89.SUBNET.HOST
    pub fn ipv4(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 89, self.subnet, host)
    }

    /// fd00:89:SUBNET::HOST, with the decimal digits of both, so that a person
    /// sees which IPv4 address belongs to it.
    pub fn ipv6(&self, host: u8) -> Ipv6Addr {
        let digits = |number: u8| {
            let number = u16::from(number);
            (number / 100) << 8 | (number / 10 % 10) << 4 | (number % 10)
        };
        Ipv6Addr::new(0xfd00, 0x89, digits(self.subnet), 0, 0, 0, 0, digits(host))
    }

    /// The namespace of the bridge `br0`; the port of host N is `pN`.
    pub fn bridge(&self) -> &Arc<Netns> {
        &self.bridge
    }

    /// Makes a namespace whose `eth0` is on the bridge with both addresses.
    pub fn join(&self, label: &str, host: u8) -> Result<Netns> {
        let netns = Netns::make(format!("{}-{label}", self.prefix))?;
        let port = format!("p{host}");
        let peer = ["peer", "name", "eth0", "netns", netns.name()];
        let link = ["link", "add", &port, "type", "veth"];
        self.bridge.ip(&[&link[..], &peer].concat())?;
        self.bridge
            .ip(&["link", "set", &port, "master", "br0", "up"])?;
        netns.add_address(self.ipv4(host).into())?;
        netns.add_address(self.ipv6(host).into())?;
        netns.ip(&["link", "set", "eth0", "up"])?;
        netns.allow_ping()?;
        Ok(netns)
    }
}

/// Removes a named namespace; its veths go with it.
pub(crate) fn remove(name: &str) -> Result<()> {
    ip(&["netns", "delete", name])
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("cannot run ip: install Debian's iproute2")?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), error.trim());
    }
    Ok(())
}
