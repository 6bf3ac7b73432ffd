//! The client's process: does what its standard input orders.

use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{
    traffic::{Answer, MESSAGE, Measured, Order, Outcome, Task, kind},
    workload::Workload,
};
use crate::statistics::percentile;

/// How long an answer may take before something is wrong.
const PATIENCE: Duration = Duration::from_secs(5);
/// A datagram without an answer by then is lost.
const LOST: Duration = Duration::from_millis(200);
/// More lost datagrams than this in a window are no measurement.
const MOST_LOST: u64 = 10;
/// Connections of [`Workload::Loaded`].
const BESIDE: usize = 16;
/// Operations of a window at most: bounds its memory, too.
const MOST: usize = 4_000_000;
/// Bytes that a stream hands over at once.
const PIECE: usize = 128 << 10;

/// Until standard input ends.
///
/// # Errors
/// When what it reads is no order. That an order cannot be carried out is an
/// answer.
pub fn serve_orders() -> Result<()> {
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let answer: Answer = obey(&order).map_err(|error| format!("{error:#}"));
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

fn obey(order: &Order) -> Result<Outcome> {
    let server = order.server;
    match order.task {
        Task::TryTcp { milliseconds } => {
            let limit = Duration::from_millis(milliseconds);
            Ok(Outcome::Tried(tcp_passes(server, limit)))
        }
        Task::TryUdp { milliseconds } => {
            let limit = Duration::from_millis(milliseconds);
            Ok(Outcome::Tried(udp_passes(server, limit)))
        }
        Task::Measure {
            workload,
            milliseconds,
        } => {
            let window = Window::new(Duration::from_millis(milliseconds));
            let measured = match workload {
                Workload::Connect => connect(server, window),
                Workload::Request => request(server, window),
                Workload::Stream => stream(server, window),
                Workload::Datagram => datagram(server, window),
                Workload::Loaded => loaded(server, window),
                Workload::Call => call(server, window),
            };
            let measured = measured.with_context(|| workload.title())?;
            Ok(Outcome::Measured(measured))
        }
    }
}

/// What happened since it was made.
struct Window {
    length: Duration,
    start: Instant,
    /// Of each operation, nanoseconds.
    took: Vec<u32>,
    lost: u64,
}

impl Window {
    fn new(length: Duration) -> Self {
        Self {
            length,
            start: Instant::now(),
            took: Vec::with_capacity(1 << 16),
            lost: 0,
        }
    }

    /// Begins now: what is opened before does not count.
    fn begin(&mut self) {
        self.start = Instant::now();
    }

    fn is_open(&self) -> bool {
        self.start.elapsed() < self.length && self.took.len() < MOST
    }

    /// As [`Self::is_open`], but for one operation at least: on a busy machine
    /// a short window is over before anything was done.
    fn goes_on(&self) -> bool {
        self.took.is_empty() || self.is_open()
    }

    fn note(&mut self, start: Instant) {
        let took = u32::try_from(start.elapsed().as_nanos());
        self.took.push(took.unwrap_or(u32::MAX));
    }

    fn close(mut self) -> Result<Measured> {
        let seconds = self.start.elapsed().as_secs_f64();
        ensure!(!self.took.is_empty(), "nothing was done in the window");
        self.took.sort_unstable();
        let operations = u32::try_from(self.took.len())?;
        let microseconds = |part, parts| f64::from(percentile(&self.took, part, parts)) / 1_000.0;
        Ok(Measured {
            rate: f64::from(operations) / seconds,
            median_us: microseconds(1, 2),
            p99_us: microseconds(99, 100),
            operations: u64::from(operations),
            lost: self.lost,
        })
    }
}

fn open(server: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, PATIENCE).context("connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, message: &mut [u8; MESSAGE]) -> io::Result<()> {
    stream.write_all(message)?;
    stream.read_exact(message)
}

/// No option is set and nothing is waited for with a limit: each would be a
/// system call more per connection. Whoever started us bounds it.
fn connect(server: SocketAddr, mut window: Window) -> Result<Measured> {
    let mut message = [kind::ONCE; MESSAGE];
    while window.goes_on() {
        let start = Instant::now();
        let mut stream = TcpStream::connect(server).context("connect")?;
        exchange(&mut stream, &mut message).context("request")?;
        ensure!(stream.read(&mut [0])? == 0, "the server said too much");
        drop(stream);
        window.note(start);
    }
    window.close()
}

fn request(server: SocketAddr, mut window: Window) -> Result<Measured> {
    let mut message = [kind::ECHO; MESSAGE];
    let mut stream = open(server)?;
    exchange(&mut stream, &mut message)?;
    window.begin();
    while window.goes_on() {
        let start = Instant::now();
        exchange(&mut stream, &mut message)?;
        window.note(start);
    }
    window.close()
}

fn loaded(server: SocketAddr, mut window: Window) -> Result<Measured> {
    let mut message = [kind::BESIDE; MESSAGE];
    let mut streams = Vec::with_capacity(BESIDE);
    for _ in 0..BESIDE {
        let mut stream = open(server)?;
        exchange(&mut stream, &mut message)?;
        streams.push((stream, Instant::now()));
    }
    window.begin();
    while window.goes_on() {
        for (stream, start) in &mut streams {
            *start = Instant::now();
            stream.write_all(&message)?;
        }
        for (stream, start) in &mut streams {
            stream.read_exact(&mut message)?;
            window.note(*start);
        }
    }
    window.close()
}

/// The server's count is what counts, over the time until it came.
fn stream(server: SocketAddr, mut window: Window) -> Result<Measured> {
    let piece = vec![kind::COUNT; PIECE];
    let mut stream = open(server)?;
    stream.write_all(&piece[..MESSAGE])?;
    window.begin();
    let mut pieces = 0;
    while pieces == 0 || window.is_open() && pieces < MOST {
        stream.write_all(&piece)?;
        pieces += 1;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    stream
        .read_exact(&mut count)
        .context("the server's count")?;
    let seconds = window.start.elapsed().as_secs_f64();
    let sent = (pieces * PIECE + MESSAGE) as u64;
    let count = u64::from_be_bytes(count);
    ensure!(count == sent, "{count} of {sent} bytes arrived");
    let kilobytes = u32::try_from(count / 1_000)?;
    Ok(Measured {
        rate: f64::from(kilobytes) / 1_000.0 / seconds,
        operations: pieces as u64,
        ..Measured::default()
    })
}

fn datagram(server: SocketAddr, mut window: Window) -> Result<Measured> {
    let socket = datagram_socket(server, LOST)?;
    let mut number = 0_u64;
    let mut message = [0; MESSAGE];
    window.begin();
    while window.goes_on() {
        number += 1;
        let start = Instant::now();
        message[..8].copy_from_slice(&number.to_be_bytes());
        socket.send(&message).context("send")?;
        if answered(&socket, number)? {
            window.note(start);
        } else {
            window.lost += 1;
            ensure!(window.lost <= MOST_LOST, "more than {MOST_LOST} were lost");
        }
    }
    window.close()
}

/// One call is too short for the clock: they are timed by the hundred.
fn call(server: SocketAddr, mut window: Window) -> Result<Measured> {
    const CALLS: u32 = 100;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    window.begin();
    while window.goes_on() {
        let start = Instant::now();
        for _ in 0..CALLS {
            socket.connect(server).context("connect")?;
        }
        window.note(start);
    }
    let measured = window.close()?;
    let calls = f64::from(CALLS);
    Ok(Measured {
        rate: measured.rate * calls,
        median_us: measured.median_us / calls,
        p99_us: measured.p99_us / calls,
        operations: measured.operations * u64::from(CALLS),
        ..measured
    })
}

/// Whether the answer with this number came; those before it came too late.
fn answered(socket: &UdpSocket, number: u64) -> Result<bool> {
    let mut message = [0; MESSAGE];
    loop {
        match socket.recv(&mut message) {
            Ok(MESSAGE) if message[..8] == number.to_be_bytes() => return Ok(true),
            Ok(_) => {}
            Err(error) if is_timeout(&error) => return Ok(false),
            Err(error) => return Err(error).context("receive"),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn datagram_socket(server: SocketAddr, limit: Duration) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server).context("connect")?;
    socket.set_read_timeout(Some(limit))?;
    Ok(socket)
}

fn tcp_passes(server: SocketAddr, limit: Duration) -> bool {
    let exchanged = TcpStream::connect_timeout(&server, limit).and_then(|mut stream| {
        stream.set_read_timeout(Some(limit))?;
        exchange(&mut stream, &mut [kind::BESIDE; MESSAGE])
    });
    exchanged.is_ok()
}

fn udp_passes(server: SocketAddr, limit: Duration) -> bool {
    let exchanged = || -> Result<bool> {
        let socket = datagram_socket(server, limit)?;
        socket.send(&[0; MESSAGE])?;
        answered(&socket, 0)
    };
    exchanged().unwrap_or(false)
}
