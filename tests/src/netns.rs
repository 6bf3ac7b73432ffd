//! Network namespaces of our own, and a bridge between them that has a namespace
//! of its own, too: nothing touches the initial namespace.

use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::named::{self, DIRECTORY};

/// A named network namespace with loopback up.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    pub(crate) fn make(name: String) -> Result<Self> {
        let file = named::make(&name)?;
        Ok(Self { name, file })
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
        self.ip_batch(&[arguments.join(" ")])
    }

    /// Runs one `ip` for several of its commands.
    pub fn ip_batch(&self, commands: &[String]) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run ip: install Debian's iproute2")?;
        // Dropped at the end of the statement, or it would wait for more.
        let written = child
            .stdin
            .take()
            .context("its input")?
            .write_all(commands.join("\n").as_bytes());
        let output = child.wait_with_output().context("ip")?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("ip {}: {}", commands.join("; "), error.trim());
        }
        written.context("ip")
    }

    /// Gives `eth0` a further address, of one of the network's prefixes.
    pub fn add_address(&self, address: IpAddr) -> Result<()> {
        self.ip_batch(&[with_address(address)])
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
        bridge.ip_batch(&[
            "link add br0 type bridge mcast_snooping 0".to_owned(),
            "link set br0 up".to_owned(),
        ])?;
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
        let name = netns.name();
        self.bridge.ip_batch(&[
            format!("link add p{host} type veth peer name eth0 netns {name}"),
            format!("link set p{host} master br0 up"),
        ])?;
        netns.ip_batch(&[
            with_address(self.ipv4(host).into()),
            with_address(self.ipv6(host).into()),
            "link set eth0 up".to_owned(),
        ])?;
        netns.allow_ping()?;
        Ok(netns)
    }
}

/// The command that gives `eth0` an address of a network's prefix.
fn with_address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => format!("address add {address}/24 dev eth0"),
        // Without nodad the address is not usable for about a second.
        IpAddr::V6(_) => format!("address add {address}/64 dev eth0 nodad"),
    }
}
