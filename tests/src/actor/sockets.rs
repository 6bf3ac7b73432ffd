//! Single socket calls, as text: `socket KIND` gives a number, the others are
//! `VERB NUMBER ARGUMENTS…`. What is said wrongly is a mistake of the test's
//! and panics.

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{SockaddrLike, SockaddrStorage},
};

use super::{kinds, passing, uring, xdp};
use crate::patience::scaled;

/// For what blocks: connect, accept, receive.
pub(super) const LIMIT: Duration = Duration::from_millis(400);

/// Lets an IPv6 raw socket write its own header.
const IPV6_HDRINCL: i32 = 36;

type Answer = Result<String, Errno>;

/// Sockets by number.
#[derive(Default)]
pub struct Sockets(Vec<Option<OwnedFd>>);

impl Sockets {
    /// The sockets that were open before an exec, under their old numbers.
    #[must_use]
    pub fn inherited(descriptors: &[i32]) -> Self {
        // SAFETY: they were left open for us, and nobody else has them.
        let own = |fd: &i32| (*fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(*fd) });
        Self(descriptors.iter().map(own).collect())
    }

    /// Lets every socket survive an exec, and gives the descriptors; -1 for one
    /// that was closed.
    pub(super) fn leave_open(&self) -> Result<Vec<i32>, Errno> {
        let leave = |socket: &Option<OwnedFd>| {
            let Some(fd) = socket else { return Ok(-1) };
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            Ok(fd.as_raw_fd())
        };
        self.0.iter().map(leave).collect()
    }

    /// Performs one call.
    ///
    /// # Errors
    /// The system call's.
    pub fn act(&mut self, call: &str) -> Answer {
        let words: Vec<&str> = call.split(' ').collect();
        match *words.as_slice() {
            ["socket", kind] => self.keep(kinds::open(kind)?),
            ["take", pid, fd] => self.keep(take(number(pid), number(fd))?),
            ["receive", path] => self.keep(passing::receive(path)?),
            ["uring"] => uring::is_there().map(|()| String::new()),
            ["xdp"] => xdp::is_there().map(|()| String::new()),
            ["xdp", hex] => xdp::send(&bytes(hex)).map(|()| String::new()),
            [verb, at, ref rest @ ..] => self.on(verb, number(at), rest),
            _ => panic!("{call}"),
        }
    }

    fn keep(&mut self, socket: OwnedFd) -> Answer {
        let fd = socket.as_raw_fd();
        self.0.push(Some(socket));
        let limit = scaled(LIMIT);
        let limit = libc::timeval {
            tv_sec: limit.as_secs().try_into().expect("a few seconds"),
            tv_usec: limit.subsec_micros().into(),
        };
        for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            set(fd, libc::SOL_SOCKET, option, &limit)?;
        }
        Ok((self.0.len() - 1).to_string())
    }

    fn on(&mut self, verb: &str, at: usize, rest: &[&str]) -> Answer {
        let fd = self.0[at].as_ref().map_or(-1, AsRawFd::as_raw_fd);
        match (verb, rest) {
            ("close", []) => {
                self.0[at] = None;
                Ok(String::new())
            }
            ("accept", []) => {
                wait(fd)?;
                let null = std::ptr::null_mut();
                // SAFETY: no address is asked for.
                let fd = unsafe { libc::accept(fd, null, std::ptr::null_mut()) };
                // SAFETY: the kernel just gave it to us.
                self.keep(unsafe { OwnedFd::from_raw_fd(Errno::result(fd)?) })
            }
            (
                "options" | "reuse" | "abortive" | "hdrincl" | "bypass" | "broadcast" | "prefer",
                _,
            ) => option(fd, verb, rest),
            _ => transmit(fd, verb, rest),
        }
    }
}

/// Calls that name an address or carry data.
fn transmit(fd: i32, verb: &str, rest: &[&str]) -> Answer {
    let done = |result: i32| Errno::result(result).map(|_| String::new());
    match (verb, rest) {
        ("fd", []) => Ok(fd.to_string()),
        ("bind", [to]) => {
            let to = storage(to);
            // SAFETY: the address and its length belong together.
            done(unsafe { libc::bind(fd, to.as_ptr(), to.len()) })
        }
        ("connect", [to]) => {
            let to = storage(to);
            // SAFETY: as above.
            done(unsafe { libc::connect(fd, to.as_ptr(), to.len()) })
        }
        ("uring-connect", [to]) => uring::connect(fd, &storage(to)).map(|()| String::new()),
        ("unspec", []) => {
            // SAFETY: all zero is AF_UNSPEC.
            let none: libc::sockaddr = unsafe { std::mem::zeroed() };
            // SAFETY: 16 bytes, as said.
            done(unsafe { libc::connect(fd, &raw const none, 16) })
        }
        // SAFETY: no pointers.
        ("listen", []) => done(unsafe { libc::listen(fd, 16) }),
        ("send", [text]) => send(fd, text.as_bytes(), None, 0),
        ("sendto", [to, text]) => send(fd, text.as_bytes(), Some(to), 0),
        ("sendhex", [to, hex]) => send(fd, &bytes(hex), Some(to), 0),
        ("sendsize", [to, size]) => send(fd, &vec![b'.'; number(size)], Some(to), 0),
        ("fastopen", [to, text]) => send(fd, text.as_bytes(), Some(to), libc::MSG_FASTOPEN),
        ("frame", [hex]) => kinds::send_frame(fd, &bytes(hex)).map(|()| String::new()),
        ("flood", [to, count]) => flood(fd, to, number(count)),
        ("pass", [path]) => passing::pass(fd, path).map(|()| String::new()),
        ("recv", []) => receive(fd),
        ("port", []) => port(fd).map(|port| port.to_string()),
        ("mac", []) => kinds::mac(fd),
        other => panic!("{other:?}"),
    }
}

fn option(fd: i32, verb: &str, rest: &[&str]) -> Answer {
    match (verb, rest) {
        ("options", [hex]) => {
            let options = bytes(hex);
            let length = libc::socklen_t::try_from(options.len()).expect("a few bytes");
            let (level, name) = (libc::IPPROTO_IP, libc::IP_OPTIONS);
            // SAFETY: as long as said.
            let result =
                unsafe { libc::setsockopt(fd, level, name, options.as_ptr().cast(), length) };
            Errno::result(result).map(|_| String::new())
        }
        ("reuse", []) => {
            set(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1i32)?;
            set(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, &1i32)
        }
        // A closed connection leaves no TIME_WAIT.
        ("abortive", []) => set(fd, libc::SOL_SOCKET, libc::SO_LINGER, &[1i32, 0]),
        ("hdrincl", ["4"]) => set(fd, libc::IPPROTO_IP, libc::IP_HDRINCL, &1i32),
        ("hdrincl", ["6"]) => set(fd, libc::IPPROTO_IPV6, IPV6_HDRINCL, &1i32),
        ("bypass", []) => set(fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1i32),
        ("broadcast", []) => set(fd, libc::SOL_SOCKET, libc::SO_BROADCAST, &1i32),
        ("prefer", [index]) => prefer(fd, number(index)),
        other => panic!("{other:?}"),
    }
}

/// Of the sockets that share this one's port, the one of this index takes
/// everything: the first that was bound has index 0.
fn prefer(fd: i32, index: u32) -> Answer {
    const RETURN: u16 = 0x06;
    let mut code = libc::sock_filter {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: index,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: &raw mut code,
    };
    set(
        fd,
        libc::SOL_SOCKET,
        libc::SO_ATTACH_REUSEPORT_CBPF,
        &program,
    )
}

/// The socket that another process has, as if it had sent it.
fn take(pid: libc::c_long, fd: libc::c_long) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let process = Errno::result(process)?;
    // SAFETY: no pointers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, fd, 0) })?;
    let fd = i32::try_from(fd).expect("a descriptor");
    // SAFETY: the kernel just gave it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until there is something to accept: not every kind of socket heeds its
/// own limit there.
fn wait(fd: i32) -> Result<(), Errno> {
    let mut entry = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let limit = scaled(LIMIT).as_millis();
    let limit = i32::try_from(limit).expect("a few seconds");
    // SAFETY: one entry, as said.
    match Errno::result(unsafe { libc::poll(&raw mut entry, 1, limit) })? {
        0 => Err(Errno::EAGAIN),
        _ => Ok(()),
    }
}

fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect(text)
}

fn storage(text: &str) -> SockaddrStorage {
    SockaddrStorage::from(text.parse::<SocketAddr>().expect(text))
}

fn bytes(hex: &str) -> Vec<u8> {
    let pair = |pair: &[u8]| {
        let digits = std::str::from_utf8(pair).expect(hex);
        u8::from_str_radix(digits, 16).expect(hex)
    };
    hex.as_bytes().chunks(2).map(pair).collect()
}

fn set<T>(fd: i32, level: i32, name: i32, value: &T) -> Answer {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("a few bytes");
    // SAFETY: as long as said.
    let result =
        unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), length) };
    Errno::result(result).map(|_| String::new())
}

fn send(fd: i32, payload: &[u8], to: Option<&str>, flags: i32) -> Answer {
    let to = to.map(storage);
    let (address, length) = to
        .as_ref()
        .map_or((std::ptr::null(), 0), |to| (to.as_ptr(), to.len()));
    let (start, size, flags) = (
        payload.as_ptr().cast(),
        payload.len(),
        flags | libc::MSG_NOSIGNAL,
    );
    // SAFETY: both buffers are as long as said.
    let sent = unsafe { libc::sendto(fd, start, size, flags, address, length) };
    Errno::result(sent).map(|_| String::new())
}

/// One datagram to each of the first `count` ports.
fn flood(fd: i32, to: &str, count: u16) -> Answer {
    for port in 1..=count {
        let address = SocketAddr::new(number(to), port);
        // A port that nobody is at answers; that is not what is asked.
        let _ = send(fd, b"x", Some(&address.to_string()), 0);
    }
    Ok(String::new())
}

/// The payload as text; as hexadecimal digits if it is none.
fn receive(fd: i32) -> Answer {
    let mut buffer = [0u8; 2048];
    // SAFETY: as long as said.
    let got = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    let got = usize::try_from(Errno::result(got)?).expect("not negative");
    let text = std::str::from_utf8(&buffer[..got]);
    Ok(text.map_or_else(|_| kinds::hex(&buffer[..got]), str::to_owned))
}

fn port(fd: i32) -> Result<u16, Errno> {
    let address: SockaddrStorage = nix::sys::socket::getsockname(fd)?;
    let v4 = address.as_sockaddr_in().map(|address| address.port());
    let v6 = || address.as_sockaddr_in6().map(|address| address.port());
    Ok(v4.or_else(v6).unwrap_or_default())
}
