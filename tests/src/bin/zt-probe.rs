//! What a workload of the tests and the demo runs: a server that tells what it
//! received, and clients that tell how they fared, one JSON object a line.

use std::io::{self, BufRead, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use zt_tests::packet::frame;
use zt_tests::report::{Attempt, Reached, Summary, name_of};
use zt_tests::stay;
use zt_tests::wire::{BROADCAST, Wire};

/// What clients send; a server's reply is its name and this.
const PAYLOAD: &str = "hello";

/// More than any datagram holds.
const BUFFER_SIZE: usize = 1 << 16;

#[derive(Parser)]
#[command(name = "zt-probe")]
enum Probe {
    /// Echo what comes, with a name before it.
    Serve(Serve),
    /// Connect, send, wait for the reply.
    Tcp(Tcp),
    /// Connect to many at the same time, and say for each how that went.
    Reach(Reach),
    /// Wait for a signal: what keeps a pod's namespaces.
    Pause,
    /// Connect again and again, and count.
    TcpLoop(TcpLoop),
    /// Send a datagram, wait for the reply.
    Udp(Udp),
    /// Ask for an ICMP echo through a datagram socket.
    Ping(Ping),
    /// Open a raw socket.
    Raw { kind: RawKind },
    /// Bind a socket.
    #[command(subcommand)]
    Bind(Bind),
    /// Open a connection, or send datagrams, until told to end.
    Stay(Stay),
    /// Listen until told to end.
    Hear(Hear),
    /// Open many connections, and count those that are left when asked.
    Crowd(Crowd),
    /// Send frames of a type past the stack, to everybody, as fast as it goes.
    Flood(Flood),
    /// Perform the socket call that each line of input names.
    Act {
        /// Descriptors from before an exec; -1 for none.
        #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
        inherited: Vec<i32>,
    },
    /// Name the kernel programs, one a line.
    #[cfg(feature = "kernel")]
    Programs,
    /// Run packet programs on the packets that each line of input names.
    #[cfg(feature = "kernel")]
    TestRun,
}

#[derive(Args)]
struct Flood {
    #[arg(long)]
    interface: String,
    #[arg(long)]
    ethertype: u16,
    /// What is in them.
    #[arg(long)]
    text: String,
    #[arg(long)]
    for_ms: u32,
}

#[derive(Args)]
struct Serve {
    #[arg(long)]
    name: String,
    #[arg(long, value_name = "ADDRESS")]
    tcp: Vec<SocketAddr>,
    #[arg(long, value_name = "ADDRESS")]
    udp: Vec<SocketAddr>,
}

#[derive(Args)]
struct Limits {
    /// The limit of each single wait.
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u32,
    /// The own address and port.
    #[arg(long, value_name = "ADDRESS")]
    from: Option<SocketAddr>,
}

#[derive(Args)]
struct Tcp {
    #[arg(long, value_name = "ADDRESS")]
    connect: SocketAddr,
    #[command(flatten)]
    limits: Limits,
    /// Keep the connection; each line of input sends and waits once more.
    #[arg(long)]
    hold: bool,
}

#[derive(Args)]
struct Reach {
    /// Whom, and where.
    #[arg(value_name = "NAME=ADDRESS", value_parser = named_address)]
    targets: Vec<(String, SocketAddr)>,
    #[command(flatten)]
    limits: Limits,
}

#[derive(Args)]
struct TcpLoop {
    #[arg(long, value_name = "ADDRESS")]
    connect: SocketAddr,
    #[command(flatten)]
    limits: Limits,
    #[arg(long)]
    for_ms: u32,
    #[arg(long, default_value_t = 0)]
    pause_ms: u32,
    /// End before that when the input ends.
    #[arg(long)]
    until_closed: bool,
}

#[derive(Args)]
#[group(id = "target", required = true, multiple = false, args = ["connect", "sendto"])]
struct Udp {
    /// Connect the socket, then send.
    #[arg(long, value_name = "ADDRESS")]
    connect: Option<SocketAddr>,
    /// Send from an unconnected socket.
    #[arg(long, value_name = "ADDRESS")]
    sendto: Option<SocketAddr>,
    /// Pad what is sent to this many bytes; beyond the MTU it goes in fragments.
    #[arg(long, value_name = "BYTES", default_value_t = PAYLOAD.len())]
    size: usize,
    #[command(flatten)]
    limits: Limits,
}

#[derive(Args)]
struct Ping {
    to: IpAddr,
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u32,
}

#[derive(Args)]
struct Stay {
    #[arg(
        long,
        value_name = "ADDRESS",
        required_unless_present = "udp",
        conflicts_with = "udp"
    )]
    tcp: Option<SocketAddr>,
    #[arg(long, value_name = "ADDRESS")]
    udp: Option<SocketAddr>,
    /// Send so often; without it a connection is idle.
    #[arg(long, value_name = "MICROSECONDS")]
    every_us: Option<u64>,
}

#[derive(Args)]
struct Crowd {
    #[arg(long, value_name = "ADDRESS")]
    tcp: SocketAddr,
    #[arg(long)]
    count: usize,
}

#[derive(Args)]
struct Hear {
    #[arg(
        long,
        value_name = "ADDRESS",
        required_unless_present = "udp",
        conflicts_with = "udp"
    )]
    tcp: Option<SocketAddr>,
    #[arg(long, value_name = "ADDRESS")]
    udp: Option<SocketAddr>,
}

#[derive(Clone, Copy, ValueEnum)]
enum RawKind {
    V4,
    V6,
    Packet,
}

#[derive(Subcommand)]
enum Bind {
    Tcp { to: SocketAddr },
    Udp { to: SocketAddr },
}

fn main() -> Result<()> {
    match Probe::parse() {
        Probe::Serve(serve) => run_server(&serve),
        Probe::Tcp(tcp) => run_tcp(&tcp),
        Probe::Reach(reach) => run_reach(&reach),
        Probe::Pause => pause(),
        Probe::TcpLoop(tcp_loop) => say(&run_loop(&tcp_loop)),
        Probe::Udp(udp) => say(&attempt(|attempt| exchange_udp(&udp, attempt))),
        Probe::Ping(ping) => say(&attempt(|attempt| exchange_ping(&ping, attempt))),
        Probe::Raw { kind } => say(&attempt(|attempt| open_raw(kind, attempt))),
        Probe::Bind(to) => say(&attempt(|attempt| try_bind(&to, attempt))),
        Probe::Stay(how) => run_stay(&how),
        Probe::Hear(at) => run_hear(&at),
        Probe::Crowd(Crowd { tcp, count }) => stay::crowd(tcp, count),
        Probe::Flood(flood) => run_flood(&flood),
        Probe::Act { inherited } => zt_tests::actor::run(&inherited),
        #[cfg(feature = "kernel")]
        Probe::Programs => {
            zt_tests::node::programs().for_each(|program| println!("{program}"));
            Ok(())
        }
        #[cfg(feature = "kernel")]
        Probe::TestRun => zt_tests::test_run::answer(),
    }
}

/// Prints one report as a line.
fn say(report: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

/// Times an attempt and names its error.
fn attempt(work: impl FnOnce(&mut Attempt) -> io::Result<()>) -> Attempt {
    let mut attempt = Attempt::default();
    let started = Instant::now();
    if let Err(error) = work(&mut attempt) {
        attempt.errno = Some(name_of(&error));
    }
    attempt.elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    attempt
}

fn run_stay(how: &Stay) -> Result<()> {
    let pause = how.every_us.map(Duration::from_micros);
    match (how.tcp, how.udp) {
        (Some(to), _) => stay::connect(to, pause),
        (_, Some(to)) => stay::send_datagrams(to, pause.context("--every-us is missing")?),
        _ => Ok(()),
    }
}

fn run_hear(at: &Hear) -> Result<()> {
    match (at.tcp, at.udp) {
        (Some(at), _) => stay::listen(at),
        (_, Some(at)) => stay::count_datagrams(at),
        _ => Ok(()),
    }
}

fn run_server(serve: &Serve) -> Result<()> {
    for address in &serve.tcp {
        let listener = TcpListener::bind(address).with_context(|| address.to_string())?;
        let name = serve.name.clone();
        thread::spawn(move || accept(&listener, &name));
    }
    for address in &serve.udp {
        let socket = UdpSocket::bind(address).with_context(|| address.to_string())?;
        let name = serve.name.clone();
        thread::spawn(move || echo_udp(&socket, &name));
    }
    println!("ready");
    // Until whoever started us closes our input, or ends without a word. What we
    // are asked is said back: a sign that everything before it has been said.
    for line in io::stdin().lock().lines() {
        println!("{}", line?);
    }
    Ok(())
}

fn accept(listener: &TcpListener, name: &str) {
    loop {
        // A connection that was reset before we took it is nothing to end for.
        let Ok((stream, peer)) = listener.accept() else {
            continue;
        };
        let Ok(local) = stream.local_addr() else {
            continue;
        };
        println!("accept tcp {peer} {local}");
        let name = name.to_owned();
        // Its end is that of the connection; an error ends only that.
        thread::spawn(move || echo_tcp(stream, peer, local, &name));
    }
}

fn echo_tcp(
    mut stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    name: &str,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let payload = String::from_utf8_lossy(&buffer[..length]);
        println!("recv tcp {peer} {local} {payload}");
        stream.write_all(format!("{name}:{payload}").as_bytes())?;
    }
}

fn echo_udp(socket: &UdpSocket, name: &str) -> io::Result<()> {
    let local = socket.local_addr()?;
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        // An ICMP error about an earlier reply, or a refusal to send one, is
        // reported here, too, and is nothing to end for.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let payload = String::from_utf8_lossy(&buffer[..length]);
        println!("recv udp {peer} {local} {payload}");
        if let Err(error) = socket.send_to(format!("{name}:{payload}").as_bytes(), peer) {
            println!("unsent udp {peer} {local} {}", name_of(&error));
        }
    }
}

fn run_tcp(tcp: &Tcp) -> Result<()> {
    let mut held = None;
    let first = attempt(|attempt| {
        let stream = connect_tcp(tcp.connect, &tcp.limits)?;
        attempt.connected = true;
        let stream = held.insert(stream);
        attempt.reply = Some(exchange_tcp(stream)?);
        Ok(())
    });
    say(&first)?;
    if !tcp.hold {
        return Ok(());
    }
    for line in io::stdin().lock().lines() {
        line?;
        let again = attempt(|attempt| {
            let stream = held.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            attempt.connected = true;
            attempt.reply = Some(exchange_tcp(stream)?);
            Ok(())
        });
        say(&again)?;
    }
    Ok(())
}

fn named_address(text: &str) -> Result<(String, SocketAddr)> {
    let (name, address) = text.split_once('=').context("NAME=ADDRESS is wanted")?;
    Ok((name.to_owned(), address.parse()?))
}

fn run_reach(reach: &Reach) -> Result<()> {
    thread::scope(|scope| {
        let tries: Vec<_> = (reach.targets.iter())
            .map(|(name, to)| (name, scope.spawn(|| reach_one(*to, &reach.limits))))
            .collect();
        for (name, tried) in tries {
            let attempt = tried.join().map_err(|_| anyhow::anyhow!("{name}: panic"))?;
            say(&Reached {
                name: name.clone(),
                attempt,
            })?;
        }
        Ok(())
    })
}

fn reach_one(to: SocketAddr, limits: &Limits) -> Attempt {
    attempt(|attempt| {
        let mut stream = connect_tcp(to, limits)?;
        attempt.connected = true;
        attempt.reply = Some(exchange_tcp(&mut stream)?);
        Ok(())
    })
}

/// A first process gets only signals that it waits for.
fn pause() -> Result<()> {
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGTERM);
    ending.add(Signal::SIGINT);
    ending.thread_block()?;
    ending.wait()?;
    Ok(())
}

/// std's own connect cannot bind first.
fn connect_tcp(to: SocketAddr, limits: &Limits) -> io::Result<TcpStream> {
    let socket = open(family(to), SockType::Stream, None)?;
    set_limit(&socket, limits.timeout_ms)?;
    if let Some(from) = limits.from {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    }
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(socket.into())
}

fn exchange_tcp(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(PAYLOAD.as_bytes())?;
    let mut buffer = vec![0; BUFFER_SIZE];
    let length = stream.read(&mut buffer)?;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text(&buffer[..length]))
}

fn run_loop(tcp_loop: &TcpLoop) -> Summary {
    let end = Instant::now() + milliseconds(tcp_loop.for_ms);
    let mut summary = Summary::default();
    let closed = Arc::new(AtomicBool::new(false));
    if tcp_loop.until_closed {
        let closed = Arc::clone(&closed);
        thread::spawn(move || {
            // An input that cannot be read has ended, too.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            closed.store(true, Ordering::Relaxed);
        });
    }
    while Instant::now() < end && !closed.load(Ordering::Relaxed) {
        summary.count(&attempt(|_| connect_once(tcp_loop)));
        thread::sleep(milliseconds(tcp_loop.pause_ms));
    }
    summary
}

fn connect_once(tcp_loop: &TcpLoop) -> io::Result<()> {
    let stream = connect_tcp(tcp_loop.connect, &tcp_loop.limits)?;
    // Closing by reset: ports in TIME_WAIT would run out within seconds.
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &linger)?;
    Ok(())
}

fn exchange_udp(udp: &Udp, attempt: &mut Attempt) -> io::Result<()> {
    let Some(to) = udp.connect.or(udp.sendto) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(udp.limits.from.unwrap_or(any))?;
    socket.set_read_timeout(Some(milliseconds(udp.limits.timeout_ms)))?;
    let mut payload = PAYLOAD.as_bytes().to_vec();
    payload.resize(udp.size, b'.');
    if udp.connect.is_some() {
        socket.connect(to)?;
        attempt.connected = true;
        socket.send(&payload)?;
    } else {
        socket.send_to(&payload, to)?;
        attempt.connected = true;
    }
    let mut buffer = vec![0; BUFFER_SIZE];
    let (length, _) = socket.recv_from(&mut buffer)?;
    attempt.reply = Some(text(&buffer[..length]));
    Ok(())
}

/// Says how many frames the kernel took.
fn run_flood(flood: &Flood) -> Result<()> {
    let wire = Wire::here(&flood.interface)?;
    let mut payload = flood.text.clone().into_bytes();
    payload.resize(payload.len().max(46), 0);
    let frame = frame(BROADCAST, wire.mac, flood.ethertype, &payload);
    let end = Instant::now() + milliseconds(flood.for_ms);
    let mut sent = 0_u64;
    while Instant::now() < end {
        // A full queue is one frame less.
        sent += u64::from(wire.send(&frame).is_ok());
    }
    println!("sent {sent}");
    Ok(())
}

/// The kernel fills in the identifier and the checksum.
fn exchange_ping(ping: &Ping, attempt: &mut Attempt) -> io::Result<()> {
    let (protocol, echo_request) = match ping.to {
        IpAddr::V4(_) => (SockProtocol::Icmp, 8),
        IpAddr::V6(_) => (SockProtocol::IcmpV6, 128),
    };
    let to = SocketAddr::new(ping.to, 0);
    let socket = open(family(to), SockType::Datagram, Some(protocol))?;
    set_limit(&socket, ping.timeout_ms)?;
    let mut message = vec![echo_request, 0, 0, 0, 0, 0, 0, 1];
    let header = message.len();
    message.extend(PAYLOAD.as_bytes());
    let to = SockaddrStorage::from(to);
    sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty())?;
    attempt.connected = true;
    let mut buffer = vec![0; BUFFER_SIZE];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let payload = buffer.get(header..length).unwrap_or_default();
    attempt.reply = Some(text(payload));
    Ok(())
}

fn open_raw(kind: RawKind, attempt: &mut Attempt) -> io::Result<()> {
    let (family, protocol) = match kind {
        RawKind::V4 => (AddressFamily::Inet, Some(SockProtocol::Icmp)),
        RawKind::V6 => (AddressFamily::Inet6, Some(SockProtocol::IcmpV6)),
        RawKind::Packet => (AddressFamily::Packet, None),
    };
    open(family, SockType::Raw, protocol)?;
    attempt.connected = true;
    Ok(())
}

fn try_bind(to: &Bind, attempt: &mut Attempt) -> io::Result<()> {
    match to {
        Bind::Tcp { to } => drop(TcpListener::bind(to)?),
        Bind::Udp { to } => drop(UdpSocket::bind(to)?),
    }
    attempt.connected = true;
    Ok(())
}

fn open(
    family: AddressFamily,
    kind: SockType,
    protocol: Option<SockProtocol>,
) -> io::Result<OwnedFd> {
    Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?)
}

fn family(address: SocketAddr) -> AddressFamily {
    match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Limits connecting and sending, and receiving, each.
fn set_limit(socket: &OwnedFd, limit_ms: u32) -> io::Result<()> {
    let limit = TimeVal::milliseconds(limit_ms.into());
    setsockopt(socket, sockopt::SendTimeout, &limit)?;
    setsockopt(socket, sockopt::ReceiveTimeout, &limit)?;
    Ok(())
}

fn milliseconds(number: u32) -> Duration {
    Duration::from_millis(number.into())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
