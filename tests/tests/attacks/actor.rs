//! Sockets in the hands of somebody else: single socket calls, one by one, in
//! a process of a workload, or as a process of the node.

use std::{
    io::{self, BufRead},
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::Command,
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{SockaddrLike, SockaddrStorage},
};
use zt_tests::{Workload, netns::Netns, patience, process::Running};

/// Marks what the actor answers among the lines of the test harness.
const MARK: &str = "@@";
/// Set in the environment of a process that is to act.
const ROLE: &str = "ZT_ATTACKS_ACTOR";
/// For what blocks: connect, accept, receive.
const LIMIT: Duration = Duration::from_millis(400);

/// Who holds the sockets.
#[allow(dead_code, reason = "two suites share it")]
pub enum Actor {
    /// A process of a workload.
    Member(Running),
    /// This process: to the programs, one of the node's.
    Host(Arc<Netns>, Sockets),
}

#[allow(dead_code, reason = "two suites share it")]
impl Actor {
    pub fn member(workload: &Workload) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "actor::acts", "--ignored", "--nocapture"]);
        command.env(ROLE, "1");
        Self::Member(workload.start(&mut command).unwrap())
    }

    pub fn host(netns: &Arc<Netns>) -> Self {
        Self::Host(Arc::clone(netns), Sockets::default())
    }

    pub fn pid(&self) -> u32 {
        match self {
            Self::Member(running) => running.pid(),
            Self::Host(..) => std::process::id(),
        }
    }

    /// Performs one call; an error is the errno's name.
    pub fn act(&mut self, call: &str) -> Result<String, String> {
        match self {
            Self::Member(running) => {
                let seen = running.lines().len();
                running.write_line(call).unwrap();
                let answer = running
                    .wait_after(seen, Duration::from_secs(10), |line| line.contains(MARK))
                    .unwrap();
                let (_, answer) = answer.split_once(MARK).unwrap();
                match answer.split_once(' ').unwrap() {
                    ("ok", text) => Ok(text.to_owned()),
                    (_, text) => Err(text.to_owned()),
                }
            }
            Self::Host(netns, sockets) => netns
                .enter(|| Ok(sockets.act(call)))
                .unwrap()
                .map_err(|errno| format!("{errno:?}")),
        }
    }

    /// As [`Actor::act`], for what must succeed and gives a number.
    pub fn get(&mut self, call: &str) -> u32 {
        self.act(call).expect(call).parse().expect(call)
    }
}

/// The process of a member; not a test.
#[test]
#[ignore = "started by the other tests as a workload's process"]
fn acts() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let mut sockets = Sockets::default();
    for call in io::stdin().lock().lines().map_while(Result::ok) {
        match sockets.act(&call) {
            Ok(text) => println!("\n{MARK}ok {text}"),
            Err(errno) => println!("\n{MARK}err {errno:?}"),
        }
    }
}

/// Sockets by number.
#[derive(Default)]
pub struct Sockets(Vec<Option<OwnedFd>>);

impl Sockets {
    fn act(&mut self, call: &str) -> Result<String, Errno> {
        let words: Vec<&str> = call.split(' ').collect();
        match *words.as_slice() {
            ["socket", kind] => self.socket(kind),
            ["take", pid, fd] => self.take(pid.parse().unwrap(), fd.parse().unwrap()),
            [verb, number, ref rest @ ..] => self.on(verb, number.parse().unwrap(), rest),
            _ => panic!("{call}"),
        }
    }

    fn socket(&mut self, kind: &str) -> Result<String, Errno> {
        let (family, kind, protocol) = match kind {
            "tcp4" => (libc::AF_INET, libc::SOCK_STREAM, 0),
            "tcp6" => (libc::AF_INET6, libc::SOCK_STREAM, 0),
            "udp4" => (libc::AF_INET, libc::SOCK_DGRAM, 0),
            "udp6" => (libc::AF_INET6, libc::SOCK_DGRAM, 0),
            "raw-tcp4" => (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP),
            "frames" => (
                libc::AF_PACKET,
                libc::SOCK_DGRAM,
                i32::from(0x0800u16.to_be()),
            ),
            "ethernet" => (libc::AF_PACKET, libc::SOCK_RAW, 0),
            other => panic!("{other}"),
        };
        // SAFETY: no pointers.
        let fd = Errno::result(unsafe { libc::socket(family, kind, protocol) })?;
        self.keep(fd)
    }

    /// The socket that another process has, as if it had sent it.
    fn take(&mut self, pid: libc::c_long, fd: libc::c_long) -> Result<String, Errno> {
        // SAFETY: no pointers.
        let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let process = Errno::result(process)?;
        // SAFETY: no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, fd, 0) };
        self.keep(i32::try_from(Errno::result(fd)?).unwrap())
    }

    fn keep(&mut self, fd: i32) -> Result<String, Errno> {
        // SAFETY: the kernel just gave it to us.
        self.0.push(Some(unsafe { OwnedFd::from_raw_fd(fd) }));
        let limit = patience::scaled(LIMIT);
        let limit = libc::timeval {
            tv_sec: limit.as_secs().try_into().unwrap(),
            tv_usec: limit.subsec_micros().into(),
        };
        for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            set(fd, libc::SOL_SOCKET, option, &limit)?;
        }
        Ok((self.0.len() - 1).to_string())
    }

    fn on(&mut self, verb: &str, number: usize, rest: &[&str]) -> Result<String, Errno> {
        let fd = self.0[number].as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let done = |result: i32| Errno::result(result).map(|_| String::new());
        match (verb, rest) {
            ("fd", []) => Ok(fd.to_string()),
            ("close", []) => {
                self.0[number] = None;
                Ok(String::new())
            }
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
            ("unspec", []) => {
                // SAFETY: all zero is AF_UNSPEC.
                let none: libc::sockaddr = unsafe { std::mem::zeroed() };
                // SAFETY: 16 bytes, as said.
                done(unsafe { libc::connect(fd, &raw const none, 16) })
            }
            // SAFETY: no pointers.
            ("listen", []) => done(unsafe { libc::listen(fd, 16) }),
            ("accept", []) => {
                let null = std::ptr::null_mut();
                // SAFETY: no address is asked for.
                let fd = unsafe { libc::accept(fd, null, std::ptr::null_mut()) };
                self.keep(Errno::result(fd)?)
            }
            ("send", [text]) => send(fd, text.as_bytes(), None),
            ("sendto", [to, text]) => send(fd, text.as_bytes(), Some(to)),
            ("sendframe", [hex]) => send_frame(fd, &bytes(hex)),
            ("sendhex", [to, hex]) => send(fd, &bytes(hex), Some(to)),
            ("flood", [to, count]) => flood(fd, to, count.parse().unwrap()),
            ("recv", []) => receive(fd),
            ("port", []) => port(fd).map(|port| port.to_string()),
            ("options", [hex]) => {
                let options = bytes(hex);
                let length = libc::socklen_t::try_from(options.len()).unwrap();
                let (level, name) = (libc::IPPROTO_IP, libc::IP_OPTIONS);
                // SAFETY: as long as said.
                done(unsafe { libc::setsockopt(fd, level, name, options.as_ptr().cast(), length) })
            }
            ("reuse", []) => {
                set(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1i32)?;
                set(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, &1i32)
            }
            // A closed connection leaves no TIME_WAIT.
            ("abortive", []) => set(fd, libc::SOL_SOCKET, libc::SO_LINGER, &[1i32, 0]),
            other => panic!("{other:?}"),
        }
    }
}

fn storage(text: &str) -> SockaddrStorage {
    SockaddrStorage::from(text.parse::<SocketAddr>().expect(text))
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn set<T>(fd: i32, level: i32, name: i32, value: &T) -> Result<String, Errno> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap();
    // SAFETY: as long as said.
    let result =
        unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), length) };
    Errno::result(result).map(|_| String::new())
}

fn send(fd: i32, payload: &[u8], to: Option<&str>) -> Result<String, Errno> {
    let to = to.map(storage);
    let (address, length) = to
        .as_ref()
        .map_or((std::ptr::null(), 0), |to| (to.as_ptr(), to.len()));
    let (start, size) = (payload.as_ptr().cast(), payload.len());
    // SAFETY: both buffers are as long as said.
    let sent = unsafe { libc::sendto(fd, start, size, libc::MSG_NOSIGNAL, address, length) };
    Errno::result(sent).map(|_| String::new())
}

/// A whole frame, out of `eth0`.
fn send_frame(fd: i32, frame: &[u8]) -> Result<String, Errno> {
    // SAFETY: plain integers, all zero is valid.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    // SAFETY: a string that ends.
    let index = unsafe { libc::if_nametoindex(c"eth0".as_ptr()) };
    to.sll_ifindex = i32::try_from(index).unwrap();
    let length = libc::socklen_t::try_from(size_of_val(&to)).unwrap();
    let (start, address) = (frame.as_ptr().cast(), (&raw const to).cast());
    // SAFETY: both are as long as said.
    let sent = unsafe { libc::sendto(fd, start, frame.len(), 0, address, length) };
    Errno::result(sent).map(|_| String::new())
}

/// One datagram to each of the first `count` ports.
fn flood(fd: i32, to: &str, count: u16) -> Result<String, Errno> {
    for port in 1..=count {
        let address = SocketAddr::new(to.parse().unwrap(), port);
        // A port that nobody is at answers; that is not what is asked.
        let _ = send(fd, b"x", Some(&address.to_string()));
    }
    Ok(String::new())
}

/// The payload as text; bytes that are no text are left out.
fn receive(fd: i32) -> Result<String, Errno> {
    let mut buffer = [0u8; 2048];
    // SAFETY: as long as said.
    let got = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    let got = usize::try_from(Errno::result(got)?).unwrap();
    let hex: Vec<String> = buffer[..got]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(std::str::from_utf8(&buffer[..got]).map_or_else(|_| hex.concat(), str::to_owned))
}

fn port(fd: i32) -> Result<u16, Errno> {
    let address: SockaddrStorage = nix::sys::socket::getsockname(fd)?;
    let v4 = address.as_sockaddr_in().map(|address| address.port());
    Ok(v4
        .or_else(|| address.as_sockaddr_in6().map(|address| address.port()))
        .unwrap_or_default())
}
