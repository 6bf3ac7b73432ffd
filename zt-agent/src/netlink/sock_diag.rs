//! Sockets of a network namespace: list the TCP ones, end one.
//!
//! Layouts: `linux/netlink.h`, `linux/inet_diag.h`, `linux/sock_diag.h`. All
//! numbers are in host byte order but for ports and addresses.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, send,
        setsockopt, socket, sockopt,
    },
    time::{TimeVal, TimeValLike},
};
use zt_common::{
    address::{Ip, mapped},
    flow,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// Request attribute: also what these BPF maps store with each socket.
const REQ_SK_BPF_STORAGES: u16 = 2;
const REQ_MAP_FD: u16 = 1;

/// Reply attributes.
const SK_BPF_STORAGES: u16 = 20;
const CGROUP_ID: u16 = 21;
const BPF_STORAGE: u16 = 1;
const STORAGE_MAP_VALUE: u16 = 3;
/// Bits of an attribute's type that are no part of its number.
const ATTRIBUTE_FLAGS: u16 = 0xc000;

/// Lengths of `nlmsghdr`, `nlattr`, `inet_diag_sockid`, `inet_diag_msg`.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
const ID: usize = 48;
const MESSAGE: usize = 72;

/// States that are asked for, as bits: established, SYN sent, and those in
/// which one side has closed. Not those without an owner's socket: listening,
/// a handshake that is not complete, TIME_WAIT.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// A dump is answered at once; whatever keeps the kernel longer must not keep
/// us.
const PATIENCE: i64 = 5;
/// More than the kernel puts into one answer.
const BUFFER: usize = 1 << 16;

/// Names one socket of a namespace for as long as it lives: it holds the
/// kernel's cookie, which no other socket gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketId {
    family: u8,
    raw: [u8; ID],
}

/// A TCP socket with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    pub id: SocketId,
    /// IPv4 in its mapped form, whatever the socket's family.
    pub local: Ip,
    pub remote: Ip,
    /// Host byte order.
    pub local_port: u16,
    pub remote_port: u16,
    /// The cgroup it was made in. `None`: nobody has it open any more.
    pub cgroup: Option<u64>,
    /// What `zt_socket_v1` holds of it. `None`: no program of ours has seen it.
    pub stored: Option<flow::Socket>,
}

/// The kernel's answer, message by message.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Socket(Box<TcpSocket>),
    /// The end; an error number if it is not 0.
    End(i32),
}

/// A diagnostics socket. It belongs to the namespace in which it was opened.
#[derive(Debug)]
pub struct Diag {
    socket: OwnedFd,
}

impl Diag {
    /// Opens one in the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        setsockopt(
            &socket,
            sockopt::ReceiveTimeout,
            &TimeVal::seconds(PATIENCE),
        )?;
        nix::sys::socket::connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// The TCP sockets of a family, with what `storage` (a socket storage map
    /// of [`flow::Socket`]s) holds of them.
    ///
    /// # Errors
    /// `ENOENT`: the kernel has no TCP diagnostics (`CONFIG_INET_TCP_DIAG`).
    pub fn list(
        &self,
        family: AddressFamily,
        storage: BorrowedFd<'_>,
    ) -> io::Result<Vec<TcpSocket>> {
        self.send(&list_request(family, storage))?;
        let mut sockets = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let bytes = buffer.get(..length).unwrap_or_default();
            for answer in messages(bytes).map(|(kind, body)| answer(kind, body)) {
                match answer? {
                    Answer::Socket(socket) => sockets.push(*socket),
                    Answer::End(0) => return Ok(sockets),
                    Answer::End(errno) => return Err(io::Error::from_raw_os_error(errno)),
                }
            }
        }
    }

    /// Ends a connection: its owner gets `ECONNABORTED`. `false`: it was gone.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: the kernel cannot (`CONFIG_INET_DIAG_DESTROY`).
    pub fn destroy(&self, id: &SocketId) -> io::Result<bool> {
        self.send(&destroy_request(id))?;
        let mut buffer = [0; 1024];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let bytes = buffer.get(..length).unwrap_or_default();
        let Some((kind, body)) = messages(bytes).next() else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match answer(kind, body)? {
            Answer::End(0) => Ok(true),
            Answer::End(libc::ENOENT) => Ok(false),
            Answer::End(errno) => Err(io::Error::from_raw_os_error(errno)),
            Answer::Socket(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Whether the kernel ends connections when it is asked to.
    ///
    /// # Errors
    /// Why not: it is asked for one that cannot exist.
    pub fn probe(&self) -> io::Result<()> {
        let nobody = SocketId {
            family: AF_INET,
            raw: [0; ID],
        };
        self.destroy(&nobody).map(drop)
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), message, MsgFlags::empty())?;
        Ok(())
    }
}

impl AsFd for Diag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u8 = 6;

fn list_request(family: AddressFamily, storage: BorrowedFd<'_>) -> Vec<u8> {
    let family = if family == AddressFamily::Inet6 {
        AF_INET6
    } else {
        AF_INET
    };
    let fd = attribute(REQ_MAP_FD, &storage.as_raw_fd().to_ne_bytes());
    let body = [
        request(family, STATES, &[0; ID]),
        attribute(REQ_SK_BPF_STORAGES, &fd),
    ]
    .concat();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    message(SOCK_DIAG_BY_FAMILY, flags, &body)
}

fn destroy_request(id: &SocketId) -> Vec<u8> {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    message(SOCK_DESTROY, flags, &request(id.family, u32::MAX, &id.raw))
}

/// `inet_diag_req_v2`
fn request(family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    [&[family, TCP, 0, 0], &states.to_ne_bytes()[..], &id[..]].concat()
}

fn message(kind: u16, flags: i32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let flags = u16::try_from(flags).unwrap_or_default();
    [
        &length.to_ne_bytes()[..],
        &kind.to_ne_bytes(),
        &flags.to_ne_bytes(),
        // The sequence number and the port: there is one request at a time,
        // and the kernel fills in the other.
        &[0; 8],
        body,
    ]
    .concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
    let padding = vec![0; aligned(value.len()) - value.len()];
    [
        &length.to_ne_bytes()[..],
        &kind.to_ne_bytes(),
        value,
        &padding,
    ]
    .concat()
}

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The messages of one datagram: type and body. What is cut off is left out.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The attributes of a body: type and value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & !ATTRIBUTE_FLAGS;
        let value = bytes.get(ATTRIBUTE..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn answer(kind: u16, body: &[u8]) -> io::Result<Answer> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "a netlink message is cut off");
    match i32::from(kind) {
        // Both begin with a negative error number, or 0.
        libc::NLMSG_ERROR | libc::NLMSG_DONE => {
            let code = i32::from_ne_bytes(*body.first_chunk().ok_or_else(cut)?);
            Ok(Answer::End(code.saturating_neg()))
        }
        _ => Ok(Answer::Socket(Box::new(tcp_socket(body).ok_or_else(cut)?))),
    }
}

/// Reads an `inet_diag_msg` and its attributes.
fn tcp_socket(body: &[u8]) -> Option<TcpSocket> {
    let family = *body.first()?;
    let raw: [u8; ID] = *body.get(4..)?.first_chunk()?;
    let port = |at: usize| Some(u16::from_be_bytes(*raw.get(at..)?.first_chunk()?));
    let ip = |at: usize| {
        let all: Ip = *raw.get(at..)?.first_chunk()?;
        let [a, b, c, d, ..] = all;
        Some(if family == AF_INET {
            mapped([a, b, c, d])
        } else {
            all
        })
    };
    let mut socket = TcpSocket {
        id: SocketId { family, raw },
        local_port: port(0)?,
        remote_port: port(2)?,
        local: ip(4)?,
        remote: ip(20)?,
        cgroup: None,
        stored: None,
    };
    for (kind, value) in attributes(body.get(MESSAGE..)?) {
        match kind {
            CGROUP_ID => socket.cgroup = value.first_chunk().map(|id| u64::from_ne_bytes(*id)),
            SK_BPF_STORAGES => socket.stored = stored(value),
            _ => {}
        }
    }
    Some(socket)
}

/// One map was asked for, so the first storage is that one's.
fn stored(storages: &[u8]) -> Option<flow::Socket> {
    let (_, storage) = attributes(storages).find(|(kind, _)| *kind == BPF_STORAGE)?;
    let (_, value) = attributes(storage).find(|(kind, _)| *kind == STORAGE_MAP_VALUE)?;
    // Of another size, it is another map's.
    (value.len() == size_of::<flow::Socket>()).then(|| {
        // SAFETY: as many bytes as the type has, which holds any bytes.
        unsafe { value.as_ptr().cast::<flow::Socket>().read_unaligned() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(family: u8) -> Vec<u8> {
        let mut id = Vec::new();
        id.extend(5432u16.to_be_bytes());
        id.extend(40000u16.to_be_bytes());
        id.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        id.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        id.extend([0; 12]);
        [&[family, 1, 0, 0], &id[..], &[0; 20]].concat()
    }

    #[test]
    fn a_socket_is_read_with_its_cgroup_and_what_our_map_holds_of_it() {
        let value = [7u8; size_of::<flow::Socket>()];
        let storage = attribute(BPF_STORAGE, &attribute(STORAGE_MAP_VALUE, &value));
        let bytes = [
            body(AF_INET),
            attribute(14, &[]),
            attribute(CGROUP_ID, &99u64.to_ne_bytes()),
            attribute(SK_BPF_STORAGES | 0x8000, &storage),
        ]
        .concat();
        let socket = tcp_socket(&bytes).unwrap();
        assert_eq!((socket.local_port, socket.remote_port), (5432, 40000));
        assert_eq!(socket.local, mapped([10, 0, 0, 1]));
        assert_eq!(socket.remote, mapped([10, 0, 0, 2]));
        assert_eq!(socket.cgroup, Some(99));
        assert_eq!(socket.stored.unwrap().remote_port, 0x0707);

        let six = tcp_socket(&body(AF_INET6)).unwrap();
        assert_eq!((six.local[0], six.cgroup, six.stored), (10, None, None));
    }

    #[test]
    fn a_storage_of_another_size_is_not_ours() {
        let storage = attribute(BPF_STORAGE, &attribute(STORAGE_MAP_VALUE, &[0; 8]));
        assert_eq!(stored(&storage), None);
    }

    #[test]
    fn whatever_is_cut_off_is_no_socket_and_no_panic() {
        let storage = attribute(BPF_STORAGE, &attribute(STORAGE_MAP_VALUE, &[1; 112]));
        let whole = message(
            SOCK_DIAG_BY_FAMILY,
            0,
            &[body(AF_INET), attribute(SK_BPF_STORAGES, &storage)].concat(),
        );
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0, "{length}");
            let _ = tcp_socket(&whole[..length]);
            let _ = answer(SOCK_DIAG_BY_FAMILY, &whole[..length]);
        }
        assert_eq!(messages(&whole).count(), 1);
    }

    #[test]
    fn errors_and_the_end_are_told_apart() {
        let kind = u16::try_from(libc::NLMSG_ERROR).unwrap();
        let done = u16::try_from(libc::NLMSG_DONE).unwrap();
        let end = |kind, code: i32| answer(kind, &code.to_ne_bytes()).unwrap();
        assert_eq!(end(kind, -libc::ENOENT), Answer::End(libc::ENOENT));
        assert_eq!(end(done, 0), Answer::End(0));
        assert!(answer(done, &[0]).is_err());
    }

    #[test]
    fn asking_whether_the_kernel_ends_connections_ends_none() {
        use std::{
            io::Read as _,
            net::{TcpListener, TcpStream},
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let Ok(diag) = Diag::open() else { return };
        match diag.probe() {
            Ok(()) => {}
            Err(error) => assert!(
                matches!(
                    error.raw_os_error(),
                    Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOENT)
                ),
                "{error}"
            ),
        }
        // Nothing of ours was touched.
        stream.set_nonblocking(true).unwrap();
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
