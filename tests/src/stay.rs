//! Connections that stay, and tell when they ended and what arrived last.
//!
//! All times are `CLOCK_BOOTTIME` nanoseconds, the clock of deadlines.

use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::{
    Workload,
    process::Running,
    report::{EOF, name_of},
    workload::probe,
};

/// How long a probe may take to open its connection, or to tell.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a connection sends at a time.
const PIECE: [u8; 8] = *b"ztstays.";

/// What became of one connection, or of a UDP socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The peer's address; of UDP, the last one's.
    pub peer: Option<SocketAddr>,
    /// Bytes, or datagrams.
    pub received: u64,
    /// When the last of them arrived; 0: none did.
    pub last: u64,
    /// The first error; `None`: it was ended by whoever started it.
    pub errno: Option<String>,
    /// When that error came.
    pub at: u64,
}

/// `CLOCK_BOOTTIME`, nanoseconds.
#[must_use]
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or((0, 0), |t| (t.tv_sec(), t.tv_nsec()));
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    number(now.0) * 1_000_000_000 + number(now.1)
}

/// A process that stays until it is asked or has something to tell.
#[derive(Debug)]
pub struct Staying(Running);

impl Staying {
    /// Waits for what it tells by itself: the error that ended it.
    pub fn ended(&self, limit: Duration) -> Result<Ended> {
        told(&self.0.wait_for(limit, |line| line.starts_with('{'))?)
    }

    /// The errors that connections to this listener ended with so far.
    pub fn all_ended(&self) -> Result<Vec<Ended>> {
        let lines = self.0.lines();
        let told_of = lines.iter().filter(|line| line.starts_with('{'));
        told_of.map(|line| told(line)).collect()
    }

    /// Ends it: what arrived until then. A connection that ended by itself
    /// says how.
    pub fn finish(mut self) -> Result<Ended> {
        let (_, lines) = self.0.finish(PATIENCE)?;
        told(lines.last().context("it said nothing")?)
    }
}

/// Many connections of one process.
#[derive(Debug)]
pub struct Crowd(Running);

impl Crowd {
    /// How many are still open.
    pub fn open(&mut self) -> Result<usize> {
        let seen = self.0.lines().len();
        self.0.write_line("how many")?;
        Ok(self.0.wait_after(seen, PATIENCE, |_| true)?.parse()?)
    }
}

fn told(line: &str) -> Result<Ended> {
    serde_json::from_str(line).with_context(|| line.to_owned())
}

impl Workload {
    /// Opens a connection and keeps it. It sends every `pause`; without one it
    /// is idle after the first exchange.
    pub fn stay(&self, to: SocketAddr, pause: Option<Duration>) -> Result<Staying> {
        self.staying("stay", &["--tcp", &to.to_string()], pause)
    }

    /// Sends datagrams every `pause`.
    pub fn stream(&self, to: SocketAddr, pause: Duration) -> Result<Staying> {
        self.staying("stay", &["--udp", &to.to_string()], Some(pause))
    }

    /// Listens and sends back what comes; tells of every connection that ended.
    pub fn hear(&self, tcp: SocketAddr) -> Result<Staying> {
        self.staying("hear", &["--tcp", &tcp.to_string()], None)
    }

    /// Counts the datagrams that come.
    pub fn hear_datagrams(&self, udp: SocketAddr) -> Result<Staying> {
        self.staying("hear", &["--udp", &udp.to_string()], None)
    }

    /// Opens many idle connections.
    pub fn crowd(&self, to: SocketAddr, count: usize) -> Result<Crowd> {
        let arguments = ["--tcp", &to.to_string(), "--count", &count.to_string()];
        let Staying(running) = self.staying("crowd", &arguments, None)?;
        Ok(Crowd(running))
    }

    fn staying(&self, what: &str, to: &[&str], pause: Option<Duration>) -> Result<Staying> {
        let mut command: Command = probe(&[&[what], to].concat())?;
        if let Some(pause) = pause {
            command.args(["--every-us", &pause.as_micros().to_string()]);
        }
        let running = self.start(&mut command)?;
        running
            .wait_for(PATIENCE, |line| line == "open")
            .with_context(|| format!("{} does not {what} {to:?}", self.name()))?;
        Ok(Staying(running))
    }
}

/// What a connection's two threads write down.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Ended>>);

impl Diary {
    fn of(peer: Option<SocketAddr>) -> Self {
        let diary = Self::default();
        diary.write(|ended| ended.peer = peer);
        diary
    }

    fn write<T>(&self, change: impl FnOnce(&mut Ended) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn arrived(&self, count: usize, peer: Option<SocketAddr>) {
        self.write(|ended| {
            ended.received += count as u64;
            ended.last = now();
            ended.peer = peer.or(ended.peer);
        });
    }

    /// The first error counts; whether this is it.
    fn failed(&self, error: &io::Error) -> bool {
        self.write(|ended| {
            let first = ended.errno.is_none();
            if first {
                ended.errno = Some(name_of(error));
                ended.at = now();
            }
            first
        })
    }

    fn tell(&self) {
        let line = self.write(|ended| serde_json::to_string(ended).unwrap_or_default());
        println!("{line}");
    }
}

/// What the probe does for [`Workload::stay`].
pub fn connect(to: SocketAddr, pause: Option<Duration>) -> Result<()> {
    let mut stream = TcpStream::connect(to).with_context(|| to.to_string())?;
    stream.set_nodelay(true)?;
    stream.write_all(&PIECE)?;
    stream.read_exact(&mut PIECE.clone())?;
    println!("open");
    let diary = Diary::of(Some(to));
    if let Some(pause) = pause {
        let (mut stream, diary) = (stream.try_clone()?, diary.clone());
        thread::spawn(move || {
            while let Ok(()) = stream.write_all(&PIECE).inspect_err(|e| end(&diary, e)) {
                thread::sleep(pause);
            }
        });
    }
    let reader = diary.clone();
    thread::spawn(move || read_on(&mut stream, &reader, |_, _| Ok(())));
    until_asked(&diary);
    Ok(())
}

/// What the probe does for [`Workload::hear`].
pub fn listen(at: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(at).with_context(|| at.to_string())?;
    println!("open");
    let all: Arc<Mutex<Vec<Diary>>> = Arc::default();
    let diaries = all.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let diary = Diary::of(stream.peer_addr().ok());
            diaries
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(diary.clone());
            thread::spawn(move || {
                read_on(&mut stream, &diary, |stream, bytes| stream.write_all(bytes));
            });
        }
    });
    asked();
    let all = all.lock().unwrap_or_else(PoisonError::into_inner);
    for diary in all
        .iter()
        .filter(|diary| diary.write(|e| e.errno.is_none()))
    {
        diary.tell();
    }
    Ok(())
}

fn read_on(
    stream: &mut TcpStream,
    diary: &Diary,
    mut answer: impl FnMut(&mut TcpStream, &[u8]) -> io::Result<()>,
) {
    let mut buffer = [0; 4096];
    loop {
        let result = match stream.read(&mut buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                diary.arrived(count, None);
                answer(stream, &buffer[..count])
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            return end(diary, &error);
        }
    }
}

fn end(diary: &Diary, error: &io::Error) {
    if diary.failed(error) {
        diary.tell();
    }
}

/// What the probe does for [`Workload::stream`].
pub fn send_datagrams(to: SocketAddr, pause: Duration) -> Result<()> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    println!("open");
    let diary = Diary::default();
    let sender = diary.clone();
    thread::spawn(move || {
        loop {
            // A refusal is what is waited for; sending goes on.
            if let Err(error) = socket.send_to(&PIECE, to) {
                sender.failed(&error);
            }
            thread::sleep(pause);
        }
    });
    until_asked(&diary);
    Ok(())
}

/// What the probe does for [`Workload::hear_datagrams`].
pub fn count_datagrams(at: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(at).with_context(|| at.to_string())?;
    println!("open");
    let diary = Diary::default();
    let counter = diary.clone();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            counter.arrived(1, Some(peer));
        }
    });
    until_asked(&diary);
    Ok(())
}

fn until_asked(diary: &Diary) {
    asked();
    diary.tell();
}

/// Until whoever started us closes our input.
fn asked() {
    let ended = |line: io::Result<String>| line.is_err();
    io::stdin().lock().lines().any(ended);
}

/// What the probe does for [`Workload::crowd`].
pub fn crowd(to: SocketAddr, count: usize) -> Result<()> {
    let open = |_| -> io::Result<TcpStream> {
        let stream = TcpStream::connect(to)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let streams: Vec<TcpStream> = (0..count).map(open).collect::<Result<_, _>>()?;
    println!("open");
    let is_open = |mut stream: &TcpStream| {
        let read = stream.read(&mut [0; 64]);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    };
    for line in io::stdin().lock().lines() {
        line?;
        let open = streams.iter().filter(|stream| is_open(stream)).count();
        println!("{open}");
    }
    Ok(())
}

impl Ended {
    /// It was ended by the other side, in order.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.errno.as_deref() == Some(EOF)
    }
}
