//! The standalone identity file: who runs here and who is elsewhere.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use zt_common::{
    codes::Protocol,
    identity::{self, Number},
};

use super::{
    address, cgroup,
    field::{Field, Fields, Sink, all},
    metadata, ports, selector,
    text::SourceFile,
    yaml::{self, Value},
};
use crate::model::{Mode, Party, Position, Problem, SpiffeId};

const KIND: &str = "NodeIdentities";

const MODES: [(&str, Mode); 2] = [("enforce", Mode::Enforce), ("audit", Mode::Audit)];

/// Reserved identities whose addresses a person may declare.
const DECLARABLE: [Number; 3] = [identity::HOST, identity::NODES, identity::APISERVER];

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityFile {
    pub workloads: Vec<WorkloadEntry>,
    pub endpoints: Vec<EndpointEntry>,
    /// What loads and is probably not meant.
    pub warnings: Vec<Problem>,
}

/// A workload on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadEntry {
    pub spiffe: SpiffeId,
    pub cgroup: CgroupRef,
    /// Empty: it is at no address of its own.
    pub addresses: Vec<IpAddr>,
    /// `None`: it has its addresses for itself.
    pub ports: Option<Vec<(Protocol, u16)>>,
    pub network_namespace: Option<NamespaceRef>,
    /// May open raw sockets.
    pub raw_sockets: bool,
    /// `None`: the node's.
    pub mode: Option<Mode>,
    pub at: Position,
}

/// Where a workload's processes are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CgroupRef {
    /// Relative to the cgroup v2 mount, or absolute; without `.` and `..`.
    Path(PathBuf),
    /// A unit's name, for example `iam.service`.
    SystemdUnit(Arc<str>),
}

/// A network namespace that one workload has for itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamespaceRef {
    /// A name below `/run/netns`.
    Name(Arc<str>),
    /// An absolute path.
    Path(PathBuf),
}

/// Who is at addresses elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointEntry {
    pub party: Party,
    pub addresses: Vec<IpAddr>,
    /// `None`: it has its addresses for itself.
    pub ports: Option<Vec<(Protocol, u16)>>,
    pub at: Position,
}

/// Reads an identity file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(file: &SourceFile) -> Result<IdentityFile, Vec<Problem>> {
    let documents = yaml::parse(file).map_err(|problem| vec![*problem])?;
    let sink = Sink::default();
    let fields: Vec<Field<'_>> = (documents.iter())
        .map(|yaml| Field::root(yaml, file, &sink))
        .collect();
    let content = match &*fields {
        [document] => identities(document),
        // Also what an editor leaves for a moment while it saves. Taking it
        // for "nobody runs here" would cut every workload off.
        [] => sink.refuse(
            file.position(1, 1),
            format!("holds no {KIND} document"),
            "to enroll nobody, write `workloads: []` in one",
        ),
        [_, second, ..] => second.refuse(
            format!("there can be one {KIND} document"),
            "move its workloads and endpoints into the first",
        ),
    };
    let (mut content, warnings) = sink.finish(content)?;
    content.warnings = warnings;
    Ok(content)
}

fn identities(document: &Field<'_>) -> Option<IdentityFile> {
    metadata::kind(document, &[KIND])?;
    let fields = document.fields(&["apiVersion", "kind", "metadata", "workloads", "endpoints"])?;
    let named = fields.or("metadata", (), |f| metadata::name(&f).map(|_| ()));
    let workloads = entries(&fields, "workloads", workload);
    let endpoints = entries(&fields, "endpoints", endpoint);
    let file = IdentityFile {
        workloads: workloads?,
        endpoints: endpoints?,
        warnings: Vec::new(),
    };
    refuse_shared_cgroups(&fields, &file.workloads);
    warn_of_conflicts(&fields, &file);
    named.map(|()| file)
}

fn entries<T>(
    fields: &Fields<'_>,
    name: &str,
    read: impl Fn(&Field<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    fields.or(name, Vec::new(), |list| {
        all(list.elements()?.iter().map(read))
    })
}

fn workload(field: &Field<'_>) -> Option<WorkloadEntry> {
    const KNOWN: [&str; 8] = [
        "spiffe",
        "cgroup",
        "systemd",
        "addresses",
        "ports",
        "networkNamespace",
        "rawSockets",
        "mode",
    ];
    let fields = field.fields(&KNOWN)?;
    let spiffe = fields
        .required("spiffe", "every workload has one")
        .and_then(|f| spiffe_id(&f));
    let cgroup = cgroup_ref(&fields);
    let place = place(&fields);
    let network_namespace = fields.or("networkNamespace", None, |f| namespace(&f).map(Some));
    let raw_sockets = fields.or("rawSockets", false, |f| f.flag());
    let mode = fields.or("mode", None, |f| f.word(&MODES).map(Some));
    let (addresses, ports) = place?;
    Some(WorkloadEntry {
        spiffe: spiffe?,
        cgroup: cgroup?,
        addresses,
        ports,
        network_namespace: network_namespace?,
        raw_sockets: raw_sockets?,
        mode: mode?,
        at: field.at(),
    })
}

fn endpoint(field: &Field<'_>) -> Option<EndpointEntry> {
    let fields = field.fields(&["spiffe", "reserved", "addresses", "ports"])?;
    let party = match fields.exactly_one(&["spiffe", "reserved"]) {
        Some(("spiffe", field)) => spiffe_id(&field).map(Party::Workload),
        Some((_, field)) => selector::reserved(&field, &DECLARABLE).map(Party::Reserved),
        None => None,
    };
    fields.required("addresses", "say where it is");
    let (addresses, ports) = place(&fields)?;
    Some(EndpointEntry {
        party: party?,
        addresses,
        ports,
        at: field.at(),
    })
}

fn spiffe_id(field: &Field<'_>) -> Option<SpiffeId> {
    field.parse("write it like spiffe://td/cluster/ns/name")
}

fn cgroup_ref(fields: &Fields<'_>) -> Option<CgroupRef> {
    match fields.exactly_one(&["cgroup", "systemd"])? {
        ("cgroup", field) => {
            let path = cgroup::path(&field)?;
            if path == Path::new("") {
                return field.refuse(
                    "is the root cgroup, which holds every process",
                    "give the workload a cgroup of its own below it",
                );
            }
            Some(CgroupRef::Path(path))
        }
        (_, field) => unit(&field).map(CgroupRef::SystemdUnit),
    }
}

fn unit(field: &Field<'_>) -> Option<Arc<str>> {
    let text = field.text()?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let stem = [".service", ".scope", ".slice"]
        .iter()
        .find_map(|s| text.strip_suffix(s));
    match stem {
        Some(stem) if !stem.is_empty() && text.chars().all(allowed) => Some(text.into()),
        _ => field.refuse(
            format!("{text:?} is no name of a systemd unit that has a cgroup"),
            "write it like iam.service",
        ),
    }
}

fn namespace(field: &Field<'_>) -> Option<NamespaceRef> {
    let text = field.text()?;
    let path = Path::new(text);
    let plain = |c| {
        matches!(
            c,
            std::path::Component::RootDir | std::path::Component::Normal(_)
        )
    };
    if text.is_empty() || text.contains('\0') || !path.components().all(plain) {
        return field.refuse(format!("{text:?} is no network namespace"), NAMESPACE_HINT);
    }
    if path.is_absolute() {
        return Some(NamespaceRef::Path(path.to_owned()));
    }
    if text.contains('/') {
        return field.refuse(format!("{text:?} is a relative path"), NAMESPACE_HINT);
    }
    Some(NamespaceRef::Name(text.into()))
}

const NAMESPACE_HINT: &str = "write a name below /run/netns, or an absolute path";

type Place = (Vec<IpAddr>, Option<Vec<(Protocol, u16)>>);

/// Reads `addresses` and `ports`.
fn place(fields: &Fields<'_>) -> Option<Place> {
    let elements = fields.or("addresses", Vec::new(), |list| list.elements());
    let addresses = elements.map(|elements| {
        all((elements.into_iter()).map(|element| {
            let ip = address::address(&element)?;
            Some((element, ip))
        }))
    });
    let ports = fields.or("ports", None, |field| owned_ports(&field).map(Some));
    let addresses = addresses??;
    if ports == Some(None) {
        refuse_loopback(&addresses);
    }
    let mut addresses: Vec<IpAddr> = addresses.into_iter().map(|(_, ip)| ip).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let ports = ports?;
    match fields.optional("ports") {
        Some(field) if addresses.is_empty() => {
            field.refuse("ports without addresses own nothing", "list the addresses")
        }
        _ => Some((addresses, ports)),
    }
}

/// Loopback is shared by everything in a namespace.
fn refuse_loopback(addresses: &[(Field<'_>, IpAddr)]) {
    for (field, _) in addresses.iter().filter(|(_, ip)| ip.is_loopback()) {
        field.error(
            "a loopback address belongs to nobody alone",
            "add `ports`: those at which this one listens",
        );
    }
}

fn owned_ports(field: &Field<'_>) -> Option<Vec<(Protocol, u16)>> {
    let elements = field.elements()?;
    if elements.is_empty() {
        return field.refuse(
            "an empty list of ports owns nothing",
            "remove the field if the addresses are not shared",
        );
    }
    let mut ports = all(elements.iter().map(owned_port))?;
    ports.sort_unstable();
    ports.dedup();
    Some(ports)
}

fn owned_port(field: &Field<'_>) -> Option<(Protocol, u16)> {
    let bad = || {
        field.refuse(
            "is no port with a protocol",
            "write it like \"5432/tcp\" or \"53/udp\"; a bare number is TCP",
        )
    };
    match field.value() {
        Value::Whole(number) => Some((Protocol::Tcp, ports::number_of_port(field, *number)?)),
        Value::Text(text) => {
            let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let protocol = match protocol {
                "tcp" | "TCP" => Protocol::Tcp,
                "udp" | "UDP" => Protocol::Udp,
                _ => return bad(),
            };
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                return bad();
            }
            let number = number.parse().unwrap_or(u64::MAX);
            Some((protocol, ports::number_of_port(field, number)?))
        }
        _ => bad(),
    }
}

fn refuse_shared_cgroups(fields: &Fields<'_>, workloads: &[WorkloadEntry]) {
    let Some(elements) = fields
        .optional("workloads")
        .and_then(|list| list.elements())
    else {
        return;
    };
    let mut seen: BTreeMap<&CgroupRef, &Position> = BTreeMap::new();
    for (workload, element) in workloads.iter().zip(elements) {
        let Some(first) = seen.get(&workload.cgroup) else {
            seen.insert(&workload.cgroup, &workload.at);
            continue;
        };
        let field = element.peek("cgroup").or_else(|| element.peek("systemd"));
        field.unwrap_or(element).error(
            "another workload has this cgroup",
            format!("the other one is at {first}; a cgroup has one identity"),
        );
    }
}

/// Two parties at one whole address: the traffic is denied as `conflict`.
/// Replicas of one identity may share an address.
fn warn_of_conflicts(fields: &Fields<'_>, file: &IdentityFile) {
    let workloads = (file.workloads.iter()).map(|w| {
        (
            Party::Workload(w.spiffe.clone()),
            &w.addresses,
            &w.ports,
            &w.at,
        )
    });
    let endpoints =
        (file.endpoints.iter()).map(|e| (e.party.clone(), &e.addresses, &e.ports, &e.at));
    let mut owners: BTreeMap<IpAddr, (Party, &Position)> = BTreeMap::new();
    for (party, addresses, ports, at) in workloads.chain(endpoints) {
        if ports.is_some() {
            continue;
        }
        for ip in addresses {
            let (owner, first) = owners.entry(*ip).or_insert_with(|| (party.clone(), at));
            if *owner != party {
                fields.node.warn_at(
                    at.clone(),
                    format!("{ip} belongs to another one too: its traffic is denied as `conflict`"),
                    format!(
                        "the other one is at {first}; give both their `ports` if they share it"
                    ),
                );
            }
        }
    }
}

#[cfg(test)]
#[path = "identities_tests.rs"]
mod tests;
