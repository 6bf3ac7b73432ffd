//! Sockets of a network namespace: list the TCP ones, end one.
//!
//! Layouts: `linux/netlink.h`, `linux/inet_diag.h`, `linux/sock_diag.h`. All
//! numbers are in host byte order but for ports and addresses.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use zt_common::{
    address::{Ip, mapped},
    flow,
};

use super::{
    NetlinkError,
    message::{Attributes, Malformed, Message, attributes, find},
    socket::{Protocol, Socket},
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

/// Lengths of `inet_diag_sockid` and `inet_diag_msg`.
const ID: usize = 48;
const MESSAGE: usize = 72;

/// States that are asked for, as bits: established, SYN sent, and those in
/// which one side has closed. Not those without an owner's socket: listening,
/// a handshake that is not complete, TIME_WAIT.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Names one socket of a namespace for as long as it lives: it holds the
/// kernel's cookie, which no other socket gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

#[cfg(test)]
impl TcpSocket {
    /// One that no kernel has.
    pub fn invented(local: (Ip, u16), remote: (Ip, u16), cgroup: u64) -> Self {
        Self {
            id: SocketId {
                family: AF_INET,
                raw: [0; ID],
            },
            local: local.0,
            remote: remote.0,
            local_port: local.1,
            remote_port: remote.1,
            cgroup: Some(cgroup),
            stored: None,
        }
    }
}

/// A diagnostics socket. It belongs to the namespace in which it was opened.
#[derive(Debug)]
pub struct Diag(Socket);

/// Of addresses and sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Diag {
    /// Opens one in the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel has none (`CONFIG_INET_DIAG`).
    pub fn open() -> Result<Self, NetlinkError> {
        Socket::open(Protocol::SockDiag).map(Self)
    }

    /// The TCP sockets of a family, with what `storage` (a socket storage map
    /// of [`flow::Socket`]s) holds of them.
    ///
    /// # Errors
    /// `ENOENT`: the kernel has no TCP diagnostics (`CONFIG_INET_TCP_DIAG`).
    pub fn list(
        &mut self,
        family: Family,
        storage: BorrowedFd<'_>,
    ) -> Result<Vec<TcpSocket>, NetlinkError> {
        const WHAT: &str = "the TCP sockets";
        let replies = self.0.dump(WHAT, list_request(family, storage))?;
        let sockets = replies.iter().map(|reply| tcp_socket(&reply.body));
        let sockets: Result<_, Malformed> = sockets.collect();
        sockets.map_err(NetlinkError::answer(WHAT))
    }

    /// Ends a connection: its owner gets `ECONNABORTED`. `false`: it was gone.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: the kernel cannot (`CONFIG_INET_DIAG_DESTROY`).
    pub fn destroy(&mut self, id: &SocketId) -> Result<bool, NetlinkError> {
        match self.0.ask("ending a connection", destroy_request(id)) {
            Ok(_) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the kernel ends connections when it is asked to.
    ///
    /// # Errors
    /// Why not: it is asked for one that cannot exist.
    pub fn probe(&mut self) -> Result<(), NetlinkError> {
        let nobody = SocketId {
            family: AF_INET,
            raw: [0; ID],
        };
        self.destroy(&nobody).map(drop)
    }
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u8 = 6;

fn list_request(family: Family, storage: BorrowedFd<'_>) -> Message {
    let family = match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    let fd = Attributes::new().put(REQ_MAP_FD, &storage.as_raw_fd().to_ne_bytes());
    let storages = Attributes::new().nest(REQ_SK_BPF_STORAGES, &fd);
    let fixed = request(family, STATES, &[0; ID]);
    Message::new(SOCK_DIAG_BY_FAMILY, 0, &fixed, &storages)
}

fn destroy_request(id: &SocketId) -> Message {
    let fixed = request(id.family, u32::MAX, &id.raw);
    Message::new(SOCK_DESTROY, 0, &fixed, &Attributes::new())
}

/// `inet_diag_req_v2`
fn request(family: u8, states: u32, id: &[u8; ID]) -> Vec<u8> {
    [&[family, TCP, 0, 0], &states.to_ne_bytes()[..], &id[..]].concat()
}

/// Reads an `inet_diag_msg` and its attributes.
fn tcp_socket(body: &[u8]) -> Result<TcpSocket, Malformed> {
    let mut socket = ends(body).ok_or(Malformed)?;
    for attribute in attributes(body.get(MESSAGE..).ok_or(Malformed)?) {
        match attribute? {
            (CGROUP_ID, value) => {
                socket.cgroup = value.first_chunk().map(|id| u64::from_ne_bytes(*id));
            }
            (SK_BPF_STORAGES, value) => socket.stored = stored(value)?,
            _ => {}
        }
    }
    Ok(socket)
}

fn ends(body: &[u8]) -> Option<TcpSocket> {
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
    Some(TcpSocket {
        id: SocketId { family, raw },
        local_port: port(0)?,
        remote_port: port(2)?,
        local: ip(4)?,
        remote: ip(20)?,
        cgroup: None,
        stored: None,
    })
}

/// One map was asked for, so the first storage is that one's.
fn stored(storages: &[u8]) -> Result<Option<flow::Socket>, Malformed> {
    let Some(storage) = find(storages, BPF_STORAGE)? else {
        return Ok(None);
    };
    let value = find(storage, STORAGE_MAP_VALUE)?.unwrap_or_default();
    // Of another size, it is another map's.
    Ok((value.len() == size_of::<flow::Socket>()).then(|| {
        // SAFETY: as many bytes as the type has, which holds any bytes.
        unsafe { value.as_ptr().cast::<flow::Socket>().read_unaligned() }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(family: u8, attributes: &Attributes) -> Vec<u8> {
        let mut id = Vec::new();
        id.extend(5432u16.to_be_bytes());
        id.extend(40000u16.to_be_bytes());
        id.extend([10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        id.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        id.extend([0; 12]);
        [&[family, 1, 0, 0], &id[..], &[0; 20], attributes.bytes()].concat()
    }

    fn storages(value: &[u8]) -> Attributes {
        let value = Attributes::new().put(STORAGE_MAP_VALUE, value);
        Attributes::new().nest(BPF_STORAGE, &value)
    }

    #[test]
    fn a_socket_is_read_with_its_cgroup_and_what_our_map_holds_of_it() {
        let all = Attributes::new()
            .put(14, &[])
            .put(CGROUP_ID, &99u64.to_ne_bytes())
            .nest(SK_BPF_STORAGES, &storages(&[7; size_of::<flow::Socket>()]));
        let socket = tcp_socket(&body(AF_INET, &all)).unwrap();
        assert_eq!((socket.local_port, socket.remote_port), (5432, 40000));
        assert_eq!(socket.local, mapped([10, 0, 0, 1]));
        assert_eq!(socket.remote, mapped([10, 0, 0, 2]));
        assert_eq!(socket.cgroup, Some(99));
        assert_eq!(socket.stored.unwrap().remote_port, 0x0707);

        let six = tcp_socket(&body(AF_INET6, &Attributes::new())).unwrap();
        assert_eq!((six.local[0], six.cgroup, six.stored), (10, None, None));
    }

    #[test]
    fn a_storage_of_another_size_is_not_ours() {
        assert_eq!(stored(storages(&[0; 8]).bytes()), Ok(None));
    }

    #[test]
    fn what_is_cut_off_is_no_socket() {
        let nest =
            Attributes::new().nest(SK_BPF_STORAGES, &storages(&[1; size_of::<flow::Socket>()]));
        let whole = body(AF_INET, &nest);
        for length in (0..whole.len()).filter(|length| *length != MESSAGE) {
            assert_eq!(tcp_socket(&whole[..length]), Err(Malformed), "{length}");
        }
        assert!(tcp_socket(&whole).is_ok());
    }

    #[test]
    fn asking_whether_the_kernel_ends_connections_ends_none() {
        use std::{
            io::{ErrorKind, Read as _},
            net::{TcpListener, TcpStream},
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let Ok(mut diag) = Diag::open() else { return };
        if let Err(error) = diag.probe() {
            let known = [libc::EPERM, libc::EOPNOTSUPP, libc::ENOENT];
            assert!(known.contains(&error.errno().unwrap_or(0)), "{error}");
        }
        stream.set_nonblocking(true).unwrap();
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}
