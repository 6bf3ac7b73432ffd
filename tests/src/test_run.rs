//! Single packets through a packet program, without a network: BPF_PROG_TEST_RUN.
//!
//! The kernel gives the packet a socket of the calling process's cgroup and
//! network namespace, new with every call and without a protocol. So a process
//! per workload makes the calls: `zt-probe test-run`, which an [`Asker`] starts
//! and asks. TCP verdicts that are kept with a socket cannot be seen this way.

use std::{
    fmt::Write,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    process::Running,
    workload::{Workload, probe},
};

/// How long a batch of runs may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// TCP flags, for [`Transport::Tcp`].
pub mod tcp {
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// What follows the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        flags: u8,
    },
    Udp,
    /// An echo request, of ICMP or ICMPv6; its identifier is the source port.
    Echo,
    /// Eight zero bytes of this protocol.
    Other(u8),
    /// A UDP fragment that is not the first.
    Fragment,
}

/// One packet. Both addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Host byte order.
    pub source_port: u16,
    pub destination_port: u16,
    pub transport: Transport,
}

const UDP: u8 = 17;

impl Packet {
    /// The Ethernet frame that the kernel takes in a test run; it strips the
    /// first header again.
    ///
    /// # Panics
    /// When the addresses are of two families.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.frame_v4(from, to),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.frame_v6(from, to),
            _ => panic!("an IPv4 and an IPv6 address in one packet"),
        }
    }

    fn frame_v4(&self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let (protocol, payload) = self.payload(1, 8);
        let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
        let offset = u8::from(self.transport == Transport::Fragment);
        let mut frame = ethernet([0x08, 0x00]);
        frame.extend([0x45, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([0, 0, 0, offset, 64, protocol, 0, 0]);
        frame.extend(from.octets());
        frame.extend(to.octets());
        frame.extend(payload);
        frame
    }

    fn frame_v6(&self, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
        const FRAGMENT: u8 = 44;
        let (mut protocol, mut payload) = self.payload(58, 128);
        if self.transport == Transport::Fragment {
            // The offset counts in units of eight bytes, from bit 3.
            payload.splice(0..0, [protocol, 0, 0, 8, 0, 0, 0, 1]);
            protocol = FRAGMENT;
        }
        let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
        let mut frame = ethernet([0x86, 0xdd]);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend(from.octets());
        frame.extend(to.octets());
        frame.extend(payload);
        frame
    }

    /// The protocol number and the bytes after the IP header. ICMP's number and
    /// the type of an echo request depend on the family.
    fn payload(&self, icmp: u8, echo: u8) -> (u8, Vec<u8>) {
        let mut ports = self.source_port.to_be_bytes().to_vec();
        ports.extend(self.destination_port.to_be_bytes());
        match self.transport {
            Transport::Tcp { flags } => {
                ports.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                (6, ports)
            }
            Transport::Udp => {
                ports.extend([0, 8, 0, 0]);
                (UDP, ports)
            }
            Transport::Echo => {
                let [high, low] = self.source_port.to_be_bytes();
                (icmp, vec![echo, 0, 0, 0, high, low, 0, 1])
            }
            Transport::Other(protocol) => (protocol, vec![0; 8]),
            Transport::Fragment => (UDP, vec![0; 16]),
        }
    }
}

fn ethernet(kind: [u8; 2]) -> Vec<u8> {
    let mut header = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    header.extend(kind);
    header
}

/// What zt-probe is asked: one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ask {
    /// Where the program is pinned.
    pub program: PathBuf,
    /// Frames, as hexadecimal digits; each is a call of its own.
    pub frames: Vec<String>,
    /// Runs per call, on one socket.
    pub repeat: u32,
}

/// What came of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// What the last run returned: 1 passes and 0 drops, of a program for
    /// frames -1 (as `u32`) passes and 2 drops.
    pub returned: u32,
    /// Of one run, on average.
    pub nanoseconds: u32,
}

/// A process that runs programs as a workload.
#[derive(Debug)]
pub struct Asker {
    running: Running,
    answered: usize,
}

impl Asker {
    /// Starts the process.
    pub fn start(workload: &Workload) -> Result<Self> {
        Ok(Self {
            running: workload.start(&mut probe(&["test-run"])?)?,
            answered: 0,
        })
    }

    /// Runs the program that is pinned at `program` once on one packet.
    pub fn run(&mut self, program: &Path, packet: &Packet) -> Result<Ran> {
        let ran = self.run_all(program, std::slice::from_ref(packet), 1)?;
        ran.first().copied().context("no answer")
    }

    /// Runs it once on a frame that is no ordinary packet.
    pub fn run_frame(&mut self, program: &Path, frame: &[u8]) -> Result<Ran> {
        let ran = self.ask(program, vec![to_hex(frame)], 1)?;
        ran.first().copied().context("no answer")
    }

    /// Runs it `repeat` times on each packet, packet after packet.
    pub fn run_all(&mut self, program: &Path, packets: &[Packet], repeat: u32) -> Result<Vec<Ran>> {
        let frames = packets.iter().map(|packet| to_hex(&packet.frame()));
        self.ask(program, frames.collect(), repeat)
    }

    fn ask(&mut self, program: &Path, frames: Vec<String>, repeat: u32) -> Result<Vec<Ran>> {
        let ask = Ask {
            program: program.into(),
            frames,
            repeat,
        };
        self.running.write_line(&serde_json::to_string(&ask)?)?;
        let line = self.running.wait_after(self.answered, PATIENCE, |_| true)?;
        self.answered += 1;
        serde_json::from_str(&line).with_context(|| format!("zt-probe said: {line}"))
    }
}

fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The other side of an [`Asker`]: answers every line of standard input, an
/// [`Ask`], with one, the results of its calls.
#[cfg(feature = "kernel")]
pub fn answer() -> Result<()> {
    let mut programs = std::collections::HashMap::new();
    for line in io::BufRead::lines(io::stdin().lock()) {
        let ask: Ask = serde_json::from_str(&line?)?;
        if !programs.contains_key(&ask.program) {
            let opened = zt_agent::kernel::sys::get_pinned(&ask.program)?;
            programs.insert(ask.program.clone(), opened);
        }
        let program = std::os::fd::AsFd::as_fd(&programs[&ask.program]);
        let calls = ask.frames.iter().map(|frame| {
            let frame = from_hex(frame)?;
            Ok(run(program, &frame, ask.repeat)?)
        });
        println!(
            "{}",
            serde_json::to_string(&calls.collect::<Result<Vec<Ran>>>()?)?
        );
    }
    Ok(())
}

/// The bytes that [`Ask::frames`] spells.
///
/// # Errors
/// When a character is no hexadecimal digit, or one is left over.
pub fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|c| u8::try_from(c.to_digit(16)?).ok())
        .collect();
    let digits = digits
        .filter(|digits| digits.len().is_multiple_of(2))
        .with_context(|| format!("not hexadecimal: {text}"))?;
    Ok(digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect())
}

/// `BPF_PROG_TEST_RUN`'s part of `union bpf_attr`
/// (the kernel's `include/uapi/linux/bpf.h`).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// A packet program that does nothing but pass: what a measurement of others
/// is compared with.
///
/// # Errors
/// What the kernel answers.
pub fn empty_program() -> io::Result<OwnedFd> {
    const PROG_LOAD: i32 = 5;
    const CGROUP_SKB: u32 = 8;
    // r0 = 1; exit
    const CODE: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
    let mut attributes = Load {
        kind: CGROUP_SKB,
        length: 2,
        code: CODE.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        ..Load::default()
    };
    // SAFETY: the attributes are a prefix of the union and of the size given,
    // and the addresses in them are those of constants.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_LOAD,
            &raw mut attributes,
            size_of::<Load>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let raw = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// The beginning of `BPF_PROG_LOAD`'s part of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    /// In instructions.
    length: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// Runs a packet program `repeat` times on a frame, as the calling process.
///
/// # Errors
/// What the kernel answers.
pub fn run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<Ran> {
    const PROG_TEST_RUN: i32 = 10;
    let mut attributes = Attributes {
        program: program.as_raw_fd().cast_unsigned(),
        data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_in: frame.as_ptr().addr() as u64,
        repeat,
        ..Attributes::default()
    };
    // SAFETY: the attributes are a prefix of the union and of the size given,
    // and the one address in them is that of `frame`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_TEST_RUN,
            &raw mut attributes,
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Ran {
        returned: attributes.retval,
        nanoseconds: attributes.duration,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zt_common::{address::mapped, codes::Reason, packet};

    fn parsed(packet: &Packet) -> packet::Packet {
        packet::parse(&packet.frame()[14..])
    }

    fn packet(transport: Transport, v6: bool) -> Packet {
        let ip = |text: &str| text.parse().unwrap();
        Packet {
            source: ip(if v6 { "fd00::1" } else { "10.0.0.1" }),
            destination: ip(if v6 { "fd00::2" } else { "10.0.0.2" }),
            source_port: 1234,
            destination_port: 80,
            transport,
        }
    }

    #[test]
    fn frames_are_read_as_what_they_were_made_of() {
        for v6 in [false, true] {
            let tcp = parsed(&packet(Transport::Tcp { flags: tcp::SYN }, v6));
            assert_eq!((tcp.kind, tcp.fault), (packet::Kind::Opening, None));
            assert_eq!((tcp.source_port, tcp.destination_port), (1234, 80));
            let udp = parsed(&packet(Transport::Udp, v6));
            assert_eq!((udp.protocol, udp.destination_port), (17, 80));
            let echo = parsed(&packet(Transport::Echo, v6));
            assert_eq!((echo.protocol, echo.source_port), (1, 1234));
            let fragment = parsed(&packet(Transport::Fragment, v6));
            assert_eq!(fragment.fault, Some(Reason::Fragment));
            let other = parsed(&packet(Transport::Other(136), v6));
            assert_eq!(other.fault, Some(Reason::UnsupportedProtocol));
        }
        let v4 = parsed(&packet(Transport::Udp, false));
        assert_eq!(v4.source, mapped([10, 0, 0, 1]));
    }

    #[test]
    fn hexadecimal_comes_back_as_it_was() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)).unwrap(), bytes);
        assert!(from_hex("abc").is_err());
        assert!(from_hex("zz").is_err());
    }
}
