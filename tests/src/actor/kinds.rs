//! The kinds of sockets that an actor opens, and what only packet sockets do.

use std::{
    fmt::Write,
    os::fd::{FromRawFd, OwnedFd},
};

use nix::errno::Errno;

const IPPROTO_UDPLITE: i32 = 136;
const IPPROTO_MPTCP: i32 = 262;
const ETH_P_IP: u16 = 0x0800;

/// The interface of every workload of the sandbox.
const INTERFACE: &std::ffi::CStr = c"eth0";

/// Opens a socket; `raw4:N` and `raw6:N` are raw sockets of protocol N.
pub fn open(kind: &str) -> Result<OwnedFd, Errno> {
    let (family, kind, protocol) = arguments(kind);
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    // SAFETY: the kernel just gave it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(Errno::result(fd)?) })
}

fn arguments(kind: &str) -> (i32, i32, i32) {
    const V4: i32 = libc::AF_INET;
    const V6: i32 = libc::AF_INET6;
    if let Some((family, protocol)) = kind.split_once(':') {
        let family = match family {
            "raw4" => V4,
            "raw6" => V6,
            other => panic!("{other}"),
        };
        return (family, libc::SOCK_RAW, protocol.parse().expect(kind));
    }
    match kind {
        "tcp4" => (V4, libc::SOCK_STREAM, 0),
        "tcp6" => (V6, libc::SOCK_STREAM, 0),
        "mptcp4" => (V4, libc::SOCK_STREAM, IPPROTO_MPTCP),
        "udp4" => (V4, libc::SOCK_DGRAM, 0),
        "udp6" => (V6, libc::SOCK_DGRAM, 0),
        "udplite4" => (V4, libc::SOCK_DGRAM, IPPROTO_UDPLITE),
        "ping4" => (V4, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        "ping6" => (V6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
        // Sends whole frames, and sees none.
        "packet" => (libc::AF_PACKET, libc::SOCK_RAW, 0),
        // Sees IPv4 packets without their frames.
        "frames" => (
            libc::AF_PACKET,
            libc::SOCK_DGRAM,
            i32::from(ETH_P_IP.to_be()),
        ),
        other => panic!("{other}"),
    }
}

/// Sends a frame as it is.
pub fn send_frame(fd: i32, frame: &[u8]) -> Result<(), Errno> {
    let to = interface()?;
    let length = libc::socklen_t::try_from(size_of_val(&to)).expect("a few bytes");
    // SAFETY: both buffers are as long as said.
    let sent = unsafe {
        libc::sendto(
            fd,
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_NOSIGNAL,
            (&raw const to).cast(),
            length,
        )
    };
    Errno::result(sent).map(drop)
}

/// The hardware address of the interface, as hexadecimal digits. Binds the
/// socket, which has protocol 0 and so still receives nothing.
pub fn mac(fd: i32) -> Result<String, Errno> {
    let mut at = interface()?;
    let mut length = libc::socklen_t::try_from(size_of_val(&at)).expect("a few bytes");
    // SAFETY: as long as said.
    Errno::result(unsafe { libc::bind(fd, (&raw const at).cast(), length) })?;
    // SAFETY: as above.
    Errno::result(unsafe { libc::getsockname(fd, (&raw mut at).cast(), &raw mut length) })?;
    Ok(hex(&at.sll_addr[..6]))
}

/// The index of the interface of every workload.
pub fn index() -> Result<u32, Errno> {
    // SAFETY: a string with its end.
    match unsafe { libc::if_nametoindex(INTERFACE.as_ptr()) } {
        0 => Err(Errno::last()),
        index => Ok(index),
    }
}

fn interface() -> Result<libc::sockaddr_ll, Errno> {
    let index = index()?;
    // SAFETY: plain integers, all zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET.try_into().expect("a small number");
    address.sll_ifindex = index.try_into().expect("a small number");
    Ok(address)
}

/// Bytes as digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
