//! The ways of a packet whose verdict is known, run on the programs themselves.
//!
//! Each is run a second time without that verdict. If it passed then, too, the first
//! run had counted another way.

use anyhow::{Context, Result, ensure};
use zt_common::address::{AddressKey, Interface, Ip, Peer, mapped};
use zt_common::codes::{Direction, Protocol, Reason, Verdict};
use zt_common::flow::{Cached, Flow, FlowKey, Owner, Socket};
use zt_common::identity::{FIRST_SPIFFE, LIMIT, Trust};
use zt_common::state::Control;
use zt_common::version::{AddressRow, Generation, InterfaceRow};

use super::interpreter;
use super::kernel::{Kernel, NOW, Packet};
use super::table::Counts;
use crate::bytecode::Object;

/// What a cgroup program returns for a packet that may go on.
const PASS: u64 = 1;
/// `TC_ACT_UNSPEC` (-1), which a program for frames returns.
const NEXT: u64 = 0xffff_ffff;

const GENERATION: Generation = 5;
const CGROUP: u64 = 4242;
/// Of the workload's veth; no loopback.
const INTERFACE: u32 = 7;
const SECOND: u64 = 1_000_000_000;

const LOCAL: [u8; 4] = [10, 0, 0, 2];
const LOCAL_PORT: u16 = 40_000;
const LOCAL_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const REMOTE: [u8; 4] = [10, 0, 0, 3];
const REMOTE_PORT: u16 = 443;
const REMOTE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];

/// Who sees the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    Socket,
    Frame,
}

/// A packet of an established flow that this end opened.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    program: &'static str,
    layer: Layer,
    protocol: Protocol,
    direction: Direction,
}

const CASES: [Case; 6] = [
    Case {
        name: "zt_egress/tcp",
        program: "zt_egress",
        layer: Layer::Socket,
        protocol: Protocol::Tcp,
        direction: Direction::Egress,
    },
    Case {
        name: "zt_egress/udp",
        program: "zt_egress",
        layer: Layer::Socket,
        protocol: Protocol::Udp,
        direction: Direction::Egress,
    },
    Case {
        name: "zt_ingress/tcp",
        program: "zt_ingress",
        layer: Layer::Socket,
        protocol: Protocol::Tcp,
        direction: Direction::Ingress,
    },
    Case {
        name: "zt_ingress/udp",
        program: "zt_ingress",
        layer: Layer::Socket,
        protocol: Protocol::Udp,
        direction: Direction::Ingress,
    },
    Case {
        name: "zt_tc_from/tcp",
        program: "zt_tc_from",
        layer: Layer::Frame,
        protocol: Protocol::Tcp,
        direction: Direction::Egress,
    },
    Case {
        name: "zt_tc_to/tcp",
        program: "zt_tc_to",
        layer: Layer::Frame,
        protocol: Protocol::Tcp,
        direction: Direction::Ingress,
    },
];

/// The counts of each, by its name.
///
/// # Errors
/// When a packet does not go the way that it is counted for.
pub fn count(object: &Object) -> Result<Vec<(&'static str, Counts)>> {
    let cases = CASES.iter();
    cases
        .map(|case| Ok((case.name, checked(object, case)?)))
        .collect()
}

fn checked(object: &Object, case: &Case) -> Result<Counts> {
    let counts = passed(object, case, &World::with_verdict()).with_context(|| {
        let name = case.name;
        format!("{name}: a packet whose verdict is known does not pass by that alone")
    })?;
    ensure!(
        passed(object, case, &World::default()).is_err(),
        "{}: a packet passes without a verdict, so that is not what was counted",
        case.name
    );
    Ok(counts)
}

fn passed(object: &Object, case: &Case, world: &World) -> Result<Counts> {
    let mut kernel = kernel(case, world)?;
    let run = interpreter::run(object, case.program, &mut kernel)?;
    let passes = match case.layer {
        Layer::Socket => PASS,
        Layer::Frame => NEXT,
    };
    // The upper half says nothing: a program returns an int.
    let result = run.result & 0xffff_ffff;
    ensure!(result == passes, "it returns {result:#x}");
    Ok(run.counts)
}

/// What is remembered of the flow: nothing.
#[derive(Default)]
struct World {
    /// With the socket.
    stored: Cached,
    /// In the flow table.
    flow: Option<Cached>,
}

impl World {
    /// That it is allowed, by the policy that is active.
    fn with_verdict() -> Self {
        let cached = Cached {
            generation: GENERATION,
            source: FIRST_SPIFFE,
            destination: FIRST_SPIFFE + 1,
            rule: 1,
            verdict: Verdict::Allow as u8,
            reason: Reason::AllowedByRule as u8,
            opened: Direction::Egress as u8,
            ..Cached::default()
        };
        Self {
            stored: cached,
            flow: Some(cached),
        }
    }
}

/// The kernel with the maps that such a packet needs; those that only a decision
/// needs are not there.
fn kernel(case: &Case, world: &World) -> Result<Kernel> {
    let socket = match case.layer {
        Layer::Socket => Some(socket(case)),
        Layer::Frame => None,
    };
    let mut kernel = Kernel::with(Packet {
        bytes: packet(case),
        interface: INTERFACE,
        socket,
    })?;
    let control = Control {
        active: Control::pack(GENERATION, GENERATION - 1),
        root_level: 1,
        datagram_idle: 60 * SECOND,
        flow_share: 1000,
        mark: 1 << 16,
        ..Control::default()
    };
    kernel.array("zt_control_v1", 1, &bytes(&control));
    let trust = bytes(&Trust::default());
    kernel.array("zt_trust_v1", usize::try_from(LIMIT)?, &trust);
    match case.layer {
        Layer::Socket => {
            let stored = bytes(&stored(case, world));
            kernel.storage("zt_socket_v1", Some(stored));
        }
        Layer::Frame => frames(&mut kernel, case, world),
    }
    Ok(kernel)
}

/// The maps that say what a frame may.
fn frames(kernel: &mut Kernel, case: &Case, world: &World) {
    let interface = Interface {
        cgroup: CGROUP,
        mac: LOCAL_MAC,
        addresses: [mapped(LOCAL), Ip::default(), Ip::default()],
        ..Interface::default()
    };
    let row = InterfaceRow::starting(INTERFACE, interface, GENERATION);
    let rows = [(bytes(&INTERFACE), bytes(&row))];
    kernel.hash("zt_interface_v1", size_of::<u32>(), &rows);
    let key = AddressKey {
        ip: mapped(REMOTE),
        ..AddressKey::default()
    };
    let peer = Peer {
        identity: FIRST_SPIFFE + 1,
        ..Peer::default()
    };
    let row = AddressRow::starting(key, peer, GENERATION);
    let rows = [(bytes(&key), bytes(&row))];
    kernel.hash("zt_address_v1", size_of::<AddressKey>(), &rows);
    let key = FlowKey {
        remote: mapped(REMOTE),
        cgroup: CGROUP,
        remote_port: REMOTE_PORT,
        local_port: LOCAL_PORT,
        protocol: case.protocol as u8,
        ..FlowKey::default()
    };
    let flow = world.flow.map(|cached| Flow {
        cached,
        seen: NOW - SECOND,
        key,
    });
    let rows = flow.map(|flow| (bytes(&key), bytes(&flow)));
    kernel.hash("zt_flow_v1", size_of::<FlowKey>(), rows.as_slice());
    kernel.hash("zt_spill_v1", size_of::<FlowKey>(), &[]);
}

/// What the socket keeps.
fn stored(case: &Case, world: &World) -> Socket {
    Socket {
        owner: Owner {
            leaf: CGROUP,
            ..Owner::default()
        },
        home: CGROUP,
        cached: world.stored,
        remote: mapped(REMOTE),
        seen: NOW - SECOND,
        remote_port: REMOTE_PORT,
        local_port: LOCAL_PORT,
        protocol: case.protocol as u8,
        homed: GENERATION,
        ..Socket::default()
    }
}

/// `struct bpf_sock` of a connected socket: include/uapi/linux/bpf.h.
fn socket(case: &Case) -> Vec<u8> {
    const AF_INET: u32 = 2;
    const SOCK_STREAM: u32 = 1;
    const SOCK_DGRAM: u32 = 2;
    const ESTABLISHED: u32 = 1;
    const LENGTH: usize = 80;
    let kind = match case.protocol {
        Protocol::Tcp => SOCK_STREAM,
        _ => SOCK_DGRAM,
    };
    let mut socket = vec![0; LENGTH];
    put(&mut socket, 4, &AF_INET.to_ne_bytes());
    put(&mut socket, 8, &kind.to_ne_bytes());
    put(&mut socket, 12, &(case.protocol as u32).to_ne_bytes());
    put(&mut socket, 24, &LOCAL);
    put(&mut socket, 44, &u32::from(LOCAL_PORT).to_ne_bytes());
    put(&mut socket, 48, &REMOTE_PORT.to_be_bytes());
    put(&mut socket, 52, &REMOTE);
    put(&mut socket, 72, &ESTABLISHED.to_ne_bytes());
    socket
}

/// A packet with a little in it, from its IP header on or, for those who see frames,
/// from its Ethernet header on.
fn packet(case: &Case) -> Vec<u8> {
    const PAYLOAD: &[u8] = b"some bytes";
    let local = (LOCAL, LOCAL_PORT, LOCAL_MAC);
    let remote = (REMOTE, REMOTE_PORT, REMOTE_MAC);
    let (from, to) = match case.direction {
        Direction::Egress => (local, remote),
        Direction::Ingress => (remote, local),
    };
    let mut transport = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    let length = |header: usize| u16::try_from(header + PAYLOAD.len()).unwrap_or(u16::MAX);
    match case.protocol {
        Protocol::Tcp => {
            const ACK: u8 = 0x10;
            // Sequence numbers, the length of the header, flags, window.
            transport.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, ACK, 1, 0, 0, 0, 0, 0]);
        }
        _ => {
            transport.extend(length(8).to_be_bytes());
            transport.extend([0, 0]);
        }
    }
    let mut ip = vec![0; 20];
    ip[0] = 0x45;
    put(&mut ip, 2, &length(20 + transport.len()).to_be_bytes());
    // Do not fragment; 64 hops.
    put(&mut ip, 6, &[0x40, 0, 64, case.protocol as u8]);
    put(&mut ip, 12, &from.0);
    put(&mut ip, 16, &to.0);
    let frame = match case.layer {
        Layer::Socket => Vec::new(),
        Layer::Frame => [&to.2[..], &from.2, &[8, 0]].concat(),
    };
    [frame, ip, transport, PAYLOAD.to_vec()].concat()
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    into[at..at + bytes.len()].copy_from_slice(bytes);
}

/// What the maps hold of a key or a value.
fn bytes<T: aya::Pod>(value: &T) -> Vec<u8> {
    let start = std::ptr::from_ref(value).cast::<u8>();
    // SAFETY: of plain values every byte is one of a field: they have no padding.
    unsafe { std::slice::from_raw_parts(start, size_of::<T>()) }.to_vec()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use zt_tests::feature;

    use super::*;
    use crate::workspace;

    /// The programs, if they were built.
    fn object() -> Option<Object> {
        let path = workspace::bpf_object("zt-ebpf");
        let Ok(elf) = fs::read(&path) else {
            feature::skip("whether the kernel programs are built");
            return None;
        };
        Some(Object::read(&elf).unwrap())
    }

    #[test]
    fn a_packet_passes_by_its_verdict_and_by_nothing_else() {
        let Some(object) = object() else { return };
        for case in &CASES {
            let name = case.name;
            passed(&object, case, &World::with_verdict())
                .unwrap_or_else(|error| panic!("{name}: {error:#}"));
            let mut denied = World::with_verdict();
            let mut old = World::with_verdict();
            let cached = |world: &mut World, change: fn(&mut Cached)| {
                change(&mut world.stored);
                world.flow.as_mut().map(change);
            };
            cached(&mut denied, |cached| cached.verdict = Verdict::Deny as u8);
            // From before what was narrowed.
            cached(&mut old, |cached| cached.generation = GENERATION - 2);
            for (world, what) in [(World::default(), "none"), (denied, "denied"), (old, "old")] {
                let result = passed(&object, case, &world);
                assert!(result.is_err(), "{name}, {what}: {result:?}");
            }
        }
    }

    #[test]
    fn a_flow_that_is_in_no_table_is_decided() {
        let Some(object) = object() else { return };
        for case in CASES.iter().filter(|case| case.layer == Layer::Frame) {
            let world = World {
                flow: None,
                ..World::with_verdict()
            };
            let error = passed(&object, case, &world).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains("it decides"), "{}: {error}", case.name);
        }
    }

    #[test]
    fn a_program_that_asks_no_map_is_found_out() {
        use crate::bytecode::tests::{HERE, function, slot};
        use std::collections::BTreeMap;

        let always = [slot(0xb7, 0, 0, 0, 1), slot(0x95, 0, 0, 0, 0)];
        let mut program = function(&always);
        program.name = "zt_egress".to_owned();
        let object = Object {
            functions: BTreeMap::from([((HERE, 0), program)]),
            data: BTreeMap::new(),
        };
        let error = checked(&object, &CASES[0]).unwrap_err().to_string();
        assert!(error.contains("passes without a verdict"), "{error}");
    }
}
