//! What the agent writes, what the programs read and what bpftool prints is
//! laid out alike: the types of zt-common against the BTF in the kernel.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{collections::BTreeMap, mem::offset_of, path::Path, process::Command};

use serde_json::Value;
use zt_agent::kernel::load::MAPS;
use zt_common::{
    address::{AddressKey, CidrKey, Interface, Peer, Workload},
    event::Event,
    flow::{Cached, Flow, FlowKey, Fragment, FragmentKey, Owner, Share, Socket},
    identity::{Name, RuleName, Trust},
    policy::{Entry, PolicyKey, RangeKey, Side},
    state::{Control, CountKey, Totals},
    version::{AddressRow, CidrRow, InterfaceRow, PolicyRow, RangeRow, Row, Version, WorkloadRow},
};
use zt_tests::{
    Sandbox,
    node::{self, Node, World, identity},
};

/// How a type lies in memory. Sizes and offsets in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    Integer {
        size: usize,
    },
    Array {
        of: Box<Shape>,
        length: usize,
    },
    Struct {
        size: usize,
        fields: Vec<(String, usize, Shape)>,
    },
}

/// A type whose shape the test knows.
trait Shaped {
    fn shape() -> Shape;
}

macro_rules! integers {
    ($($name:ty),+) => {$(
        impl Shaped for $name {
            fn shape() -> Shape {
                Shape::Integer { size: size_of::<Self>() }
            }
        }
    )+};
}
integers!(u8, u16, u32, u64, i8, i32);

impl<T: Shaped, const N: usize> Shaped for [T; N] {
    fn shape() -> Shape {
        Shape::Array {
            of: Box::new(T::shape()),
            length: N,
        }
    }
}

/// Lists every field of a struct; a forgotten one does not compile.
macro_rules! structs {
    ($([$($generics:tt)*] $name:ty { $($field:ident),+ })+) => {$(
        impl<$($generics)*> Shaped for $name {
            fn shape() -> Shape {
                let _every_field = |value: Self| {
                    let Self { $($field: _),+ } = value;
                };
                Shape::Struct {
                    size: size_of::<Self>(),
                    fields: vec![$((
                        stringify!($field).to_owned(),
                        offset_of!(Self, $field),
                        shape_of(|value: &Self| &value.$field),
                    )),+],
                }
            }
        }
    )+};
}

fn shape_of<T, F: Shaped>(_field: fn(&T) -> &F) -> Shape {
    F::shape()
}

structs! {
    [] Control { active, epoch, root, root_level, flags, datagram_idle, flow_share, mark, zero }
    [] Totals { decisions, lost_ring, uncounted, flow_full, flow_spilled }
    [] CountKey { source, destination, verdict, reason, direction, zero }
    [] AddressKey { ip, port, protocol, zero }
    [] CidrKey { prefix_len, ip }
    [] Peer { cgroup, identity, class, flags, port, zero }
    [] Workload { netns, identity, flags }
    [] PolicyKey { source, destination, port, protocol, zero }
    [] RangeKey { prefix_len, source, destination, protocol, zero, port }
    [] Side { deadline, rule, action, zero }
    [] Entry { now, would, ranges, zero }
    [] Name { name }
    [] RuleName { name }
    [] Trust { quarantined }
    [] FlowKey { remote, cgroup, remote_port, local_port, protocol, zero }
    [] Cached { deadline, generation, source, destination, rule, verdict, reason, opened, owed, sequence }
    [] Flow { cached, seen, key }
    [] Owner { leaf, below_root, netns }
    [] Socket {
        owner, home, cached, remote, seen, remote_port, local_port, protocol, zero, homed, pad
    }
    [] FragmentKey { remote, cgroup, identification, protocol, direction, zero }
    [] Fragment { cached, seen, key, header_end, zero }
    [] Interface { cgroup, mac, zero, addresses }
    [] Share { window, flows }
    [] Event {
        time, sequence, cgroup, remote, source, destination, generation, rule, would_rule,
        latency_ns, remote_port, local_port, cpu, protocol, hook, direction, verdict, reason,
        would_verdict, interface
    }
    [T: Shaped] Version<T> { from, until, value }
    [K: Shaped, T: Shaped, const PAD: usize] Row<K, T, PAD> { versions, key, zero }
}

/// The programs see the key of a trie as a prefix length and its data.
fn trie_key(flat: Shape) -> Shape {
    let Shape::Struct { size, mut fields } = flat else {
        panic!("a trie's key is a struct");
    };
    let prefix_len = fields.remove(0);
    let start = prefix_len.1 + size_of::<u32>();
    for field in &mut fields {
        field.1 -= start;
    }
    let data = match &fields[..] {
        [(_, 0, only)] => only.clone(),
        _ => Shape::Struct {
            size: size - start,
            fields,
        },
    };
    Shape::Struct {
        size,
        fields: vec![prefix_len, ("data".to_owned(), start, data)],
    }
}

/// Key and value of every map but the ring.
fn shapes() -> BTreeMap<&'static str, (Shape, Shape)> {
    BTreeMap::from([
        ("zt_control_v1", (u32::shape(), Control::shape())),
        ("zt_workload_v1", (u64::shape(), WorkloadRow::shape())),
        ("zt_interface_v1", (u32::shape(), InterfaceRow::shape())),
        ("zt_address_v1", (AddressKey::shape(), AddressRow::shape())),
        ("zt_cidr_v1", (trie_key(CidrKey::shape()), CidrRow::shape())),
        ("zt_policy_v1", (PolicyKey::shape(), PolicyRow::shape())),
        (
            "zt_range_v1",
            (trie_key(RangeKey::shape()), RangeRow::shape()),
        ),
        ("zt_trust_v1", (u32::shape(), Trust::shape())),
        ("zt_flow_v1", (FlowKey::shape(), Flow::shape())),
        ("zt_spill_v1", (FlowKey::shape(), Flow::shape())),
        ("zt_fragment_v1", (FragmentKey::shape(), Fragment::shape())),
        ("zt_share_v1", (u64::shape(), Share::shape())),
        ("zt_socket_v1", (i32::shape(), Socket::shape())),
        ("zt_totals_v1", (u32::shape(), Totals::shape())),
        ("zt_count_v1", (CountKey::shape(), u64::shape())),
        ("zt_rulehits_v1", (u32::shape(), u64::shape())),
        ("zt_identity_v1", (u32::shape(), Name::shape())),
        ("zt_rule_v1", (u32::shape(), RuleName::shape())),
    ])
}

/// The ring buffer's records have no BTF type of their own in the kernel.
const RING: &str = "zt_events_v1";

/// The types of a BTF object, by their numbers.
struct Btf(BTreeMap<u64, Value>);

impl Btf {
    /// Reads what the kernel has of a pinned map; `part`: `all`, or only the
    /// type itself of the `key` or the `value`.
    fn of(map: &Path, part: &str) -> Self {
        let path = map.to_str().unwrap();
        let dump = bpftool(&["-j", "btf", "dump", "map", "pinned", path, part]);
        let types = dump["types"].as_array().expect("a list of types");
        Self(
            types
                .iter()
                .map(|found| (number(found, "id"), found.clone()))
                .collect(),
        )
    }

    fn shape(&self, id: u64) -> Shape {
        let found = &self.0[&id];
        match found["kind"].as_str().unwrap() {
            "INT" => Shape::Integer {
                size: size(found, "size"),
            },
            "ARRAY" => Shape::Array {
                of: Box::new(self.shape(number(found, "type_id"))),
                length: size(found, "nr_elems"),
            },
            "STRUCT" => Shape::Struct {
                size: size(found, "size"),
                fields: self.fields(found),
            },
            kind => panic!("a {kind} in a map: {found}"),
        }
    }

    fn fields(&self, of: &Value) -> Vec<(String, usize, Shape)> {
        let members = of["members"].as_array().unwrap();
        let field = |member: &Value| {
            let bits = size(member, "bits_offset");
            assert_eq!(bits % 8, 0, "a bit field: {member}");
            let name = member["name"].as_str().unwrap().to_owned();
            (name, bits / 8, self.shape(number(member, "type_id")))
        };
        members.iter().map(field).collect()
    }

    fn only(&self) -> u64 {
        let mut ids = self.0.keys();
        let first = ids.next().expect("the map has no BTF type");
        assert_eq!(ids.next(), None);
        *first
    }

    fn named(&self, name: &str) -> u64 {
        let mut found = self.0.iter().filter(|(_, value)| value["name"] == name);
        *found.next().unwrap_or_else(|| panic!("no type {name}")).0
    }
}

fn number(of: &Value, field: &str) -> u64 {
    of[field]
        .as_u64()
        .unwrap_or_else(|| panic!("no {field} in {of}"))
}

fn size(of: &Value, field: &str) -> usize {
    usize::try_from(number(of, field)).unwrap()
}

fn bpftool(arguments: &[&str]) -> Value {
    let output = Command::new("bpftool").args(arguments).output();
    let output = output.expect("bpftool is not there: install Debian's bpftool");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "bpftool {arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_map_is_laid_out_in_the_kernel_as_the_agent_reads_it() {
    let sandbox = Sandbox::new().unwrap();
    let node = Node::new(&sandbox).unwrap();
    let shapes = shapes();
    let all = Btf::of(&node.pins.map("zt_control_v1"), "all");
    for (name, _, _) in MAPS {
        if *name == RING {
            assert_eq!(all.shape(all.named("Event")), Event::shape());
            continue;
        }
        let (key, value) = shapes.get(name).unwrap_or_else(|| {
            panic!("{name} is new: say here which types its keys and values are")
        });
        let pin = node.pins.map(name);
        let in_kernel = |part| all.shape(Btf::of(&pin, part).only());
        assert_eq!(in_kernel("key"), *key, "the key of {name}");
        assert_eq!(in_kernel("value"), *value, "the value of {name}");
    }
}

#[test]
fn bpftool_prints_rows_with_the_names_of_their_fields_and_names_as_text() {
    let sandbox = Sandbox::new().unwrap();
    let mut node = Node::new(&sandbox).unwrap();
    let world = ["client", "server"]
        .iter()
        .fold(World::default(), |world, name| {
            let cgroup = sandbox.cgroup().child(name).unwrap();
            world.enrol_cgroup(name, &cgroup, None)
        });
    let rules = format!("[{}]", node::allow("client", "server", "[8080]", "TCP"));
    node.apply(&world.rules(&rules).unwrap().model).unwrap();
    let [client, server] = ["client", "server"].map(|name| node.number(&identity(name)).unwrap());

    let row = row_of(&node, "zt_policy_v1", |key| key["port"] == 8080);
    assert_eq!(row["key"]["source"], client);
    assert_eq!(row["key"]["destination"], server);
    assert_eq!(row["key"]["protocol"], 6);
    // The first version is that of the generation before, which had no such row.
    let version = &row["value"]["versions"][1];
    assert_eq!(version["from"], 1);
    let rule = &version["value"]["now"]["rule"];

    let name = row_of(&node, "zt_identity_v1", |key| *key == client);
    assert_eq!(name["value"]["name"], identity("client"));
    let name = row_of(&node, "zt_rule_v1", |key| key == rule);
    assert_eq!(name["value"]["name"], "test/rule-1");
}

/// One row, as bpftool prints it.
fn row_of(node: &Node, map: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let pin = node.pins.map(map);
    let dump = bpftool(&["-j", "map", "dump", "pinned", pin.to_str().unwrap()]);
    let rows = dump.as_array().unwrap().iter().map(|row| &row["formatted"]);
    let mut found = rows.filter(|row| is_it(&row["key"]));
    found
        .next()
        .unwrap_or_else(|| panic!("no such row in {map}: {dump}"))
        .clone()
}
