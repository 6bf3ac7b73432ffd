//! Which interfaces of the agent's namespace lead to which workload.
//!
//! A workload's packets can be decided completely where they come out of its
//! namespace: at the other end of a veth whose one end is inside. Everything
//! else is named, with the reason why it is not so.

use std::{
    io,
    net::IpAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::netns;
use crate::{
    kernel::netns::own_cookie,
    netlink::{
        NetlinkError,
        links::{Link, Links},
    },
};

/// Why nothing is known of a workload's interfaces.
#[derive(Debug, thiserror::Error)]
pub enum InterfacesError {
    #[error("the network namespace {path} cannot be looked into: {source}")]
    Enter { path: PathBuf, source: io::Error },
    #[error("the interfaces of the network namespace {path} cannot be read: {source}")]
    Read { path: PathBuf, source: NetlinkError },
    #[error("the interfaces of this node cannot be read: {0}")]
    Own(NetlinkError),
    #[error("the cookie of the agent's own network namespace cannot be read: {0}")]
    OwnCookie(io::Error),
}

/// A link inside a workload's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InsideLink {
    pub link: Link,
    /// All of them, those of the link's scope, too.
    pub addresses: Vec<IpAddr>,
}

/// A network namespace, seen from the agent's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    pub cookie: u64,
    pub interfaces: Interfaces,
}

/// The interfaces of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Interfaces {
    /// It is the agent's own namespace: the node's interfaces, which belong
    /// to no workload.
    Node,
    /// One for each link inside but loopback.
    Workload(Vec<Coverage>),
}

/// What one link inside means for us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Coverage {
    Covered(Covered),
    /// It leads nowhere but to other links inside, which are in the list.
    Internal {
        name: String,
        why: String,
    },
    /// What passes it passes no interface that can be governed. `why` is a
    /// clause for people that names the interface.
    Uncovered {
        name: String,
        why: String,
    },
}

/// A link inside whose other end is an interface here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    pub host_index: u32,
    pub host_name: String,
    pub inside_index: u32,
    pub inside_name: String,
    /// Of the link inside: what it may send from.
    pub mac: [u8; 6],
    /// Before that it may still be given another MAC address.
    pub up: bool,
    pub addresses: Vec<IpAddr>,
}

/// Files of namespaces that are open at the same time: a workload may have as
/// many as it likes, and the agent may not open as many as it likes.
const AT_ONCE: usize = 64;

/// Looks into the namespaces of several files, in their order. Everything is
/// as seen from the caller's network namespace.
///
/// # Errors
/// When the caller's own namespace cannot be read; what is wrong with one of
/// the others is its own error.
pub fn find(paths: &[PathBuf]) -> Result<Vec<Result<Namespace, InterfacesError>>, InterfacesError> {
    let mut found = Vec::with_capacity(paths.len());
    for some in paths.chunks(AT_ONCE) {
        found.extend(find_together(some)?);
    }
    Ok(found)
}

fn find_together(
    paths: &[PathBuf],
) -> Result<Vec<Result<Namespace, InterfacesError>>, InterfacesError> {
    let files: Vec<_> = paths.iter().map(|path| netns::open(path)).collect();
    let visits = netns::inside(&files, Visit::make);
    // To list them gives the namespaces of other ends their numbers.
    let mut own = Links::open().map_err(InterfacesError::Own)?;
    let node = own.list().map_err(InterfacesError::Own)?;
    let cookie = own_cookie().map_err(InterfacesError::OwnCookie)?;
    let looked = paths.iter().zip(files.into_iter().zip(visits));
    Ok(looked
        .map(|(path, (file, visit))| {
            let path = path.as_path();
            let visit = visit.map_err(enter(path))?;
            let inside = visit.cookie.map_err(enter(path))?;
            let interfaces = if inside == cookie {
                Interfaces::Node
            } else {
                let links = visit.links.map_err(read(path))?;
                let nsid = own.namespace_id(file.map_err(enter(path))?.as_fd());
                Interfaces::Workload(cover(&node, nsid.map_err(read(path))?, &links))
            };
            Ok(Namespace {
                cookie: inside,
                interfaces,
            })
        })
        .collect())
}

fn enter(path: &Path) -> impl Fn(io::Error) -> InterfacesError {
    move |source| InterfacesError::Enter {
        path: path.to_owned(),
        source,
    }
}

fn read(path: &Path) -> impl Fn(NetlinkError) -> InterfacesError {
    move |source| InterfacesError::Read {
        path: path.to_owned(),
        source,
    }
}

/// What a thread inside finds.
struct Visit {
    cookie: io::Result<u64>,
    links: Result<Vec<InsideLink>, NetlinkError>,
}

impl Visit {
    fn make() -> Self {
        Self {
            cookie: own_cookie(),
            links: links_and_addresses(),
        }
    }
}

/// The caller's namespace's links but loopback, with their addresses.
fn links_and_addresses() -> Result<Vec<InsideLink>, NetlinkError> {
    let mut inside = Links::open()?;
    let links = inside.list()?.into_iter().filter(|link| !link.loopback);
    let addresses = inside.addresses()?;
    let of = |index: u32| {
        let own = addresses.iter().filter(|(of, _)| *of == index);
        own.map(|(_, address)| *address).collect()
    };
    Ok(links
        .map(|link| InsideLink {
            addresses: of(link.index),
            link,
        })
        .collect())
}

/// Finds the other end of every link inside among the `node`'s links. `nsid`
/// is the node's number for the namespace inside; one without a number has no
/// link with an end here.
#[must_use]
pub fn cover(node: &[Link], nsid: Option<i32>, inside: &[InsideLink]) -> Vec<Coverage> {
    let one = |link: &InsideLink| match covered(node, nsid, link) {
        Ok(covered) => Coverage::Covered(covered),
        Err(Not::Internal(why)) => Coverage::Internal {
            name: link.link.name.clone(),
            why,
        },
        Err(Not::Covered(why)) => Coverage::Uncovered {
            name: link.link.name.clone(),
            why,
        },
    };
    inside.iter().map(one).collect()
}

/// Why a link is not covered.
enum Not {
    Internal(String),
    Covered(String),
}

fn covered(node: &[Link], nsid: Option<i32>, inside: &InsideLink) -> Result<Covered, Not> {
    let link = &inside.link;
    if link.kind.as_deref() != Some("veth") {
        return Err(no_veth(link));
    }
    let host = other_end(node, nsid, link)?;
    let no_mac = || Not::Covered(format!("{} has no MAC address", link.name));
    Ok(Covered {
        host_index: host.index,
        host_name: host.name.clone(),
        inside_index: link.index,
        inside_name: link.name.clone(),
        mac: link.mac.ok_or_else(no_mac)?,
        up: link.up,
        addresses: inside.addresses.clone(),
    })
}

/// Both ends must name each other: indices repeat in every namespace.
fn other_end<'a>(node: &'a [Link], nsid: Option<i32>, link: &Link) -> Result<&'a Link, Not> {
    let name = &link.name;
    let Some(peer) = link.peer else {
        return Err(Not::Covered(format!("{name} has lost its other end")));
    };
    if link.peer_nsid.is_none() {
        return Err(Not::Internal(format!("both ends of {name} are inside")));
    }
    let is_other_end = |host: &&Link| {
        host.index == peer
            && host.kind.as_deref() == Some("veth")
            && host.peer == Some(link.index)
            && host.peer_nsid.is_some()
            && host.peer_nsid == nsid
    };
    node.iter().find(is_other_end).ok_or_else(|| {
        Not::Covered(format!(
            "the other end of {name} is in another namespace than the agent"
        ))
    })
}

/// Kinds that only lead to other links, and of which the kernel says when
/// those are in another namespace.
const STACKED: &[&str] = &[
    "vlan",
    "macvlan",
    "macvtap",
    "ipvlan",
    "ipvtap",
    "ipip",
    "sit",
    "ip6tnl",
    "gre",
    "gretap",
    "erspan",
    "ip6gre",
    "ip6gretap",
    "ip6erspan",
    "vti",
    "vti6",
    "vxlan",
    "geneve",
    "xfrm",
];

/// Kinds that lead to their ports, which are inside with them, or nowhere.
const CLOSED: &[&str] = &["bridge", "bond", "team", "vrf", "dummy", "ifb", "nlmon"];

fn no_veth(link: &Link) -> Not {
    let name = &link.name;
    let Some(kind) = link.kind.as_deref() else {
        return Not::Covered(format!(
            "{name} is a network device of its own (hardware or a virtual function): it has no host side"
        ));
    };
    let inside = link.peer_nsid.is_none();
    if CLOSED.contains(&kind) || (STACKED.contains(&kind) && inside) {
        return Not::Internal(format!(
            "{name} is a {kind}: it leads only to what is inside"
        ));
    }
    Not::Covered(match kind {
        "tun" => format!("{name} is a tun device: what it sends goes to a process"),
        "wireguard" => {
            format!("{name} is a WireGuard device: its packets may leave by another namespace")
        }
        _ => format!("{name} is a {kind}: it has no host side"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: i32 = 4;

    fn veth(index: u32, name: &str, peer: u32, nsid: Option<i32>) -> Link {
        Link {
            index,
            name: name.into(),
            kind: Some("veth".into()),
            mac: Some([2, 0, 0, 0, 0, 7]),
            peer: Some(peer),
            peer_nsid: nsid,
            ..Link::default()
        }
    }

    fn one(node: &[Link], link: Link) -> Coverage {
        let addresses = vec!["10.0.0.1".parse().unwrap(), "fe80::1".parse().unwrap()];
        let inside = [InsideLink { link, addresses }];
        cover(node, Some(INSIDE), &inside).remove(0)
    }

    fn why_not(node: &[Link], link: Link) -> String {
        match one(node, link) {
            Coverage::Uncovered { why, .. } => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_veth_is_covered_by_its_other_end() {
        let node = [
            veth(9, "other", 2, Some(5)),
            veth(10, "veth1", 2, Some(INSIDE)),
        ];
        let Coverage::Covered(covered) = one(&node, veth(2, "eth0", 10, Some(0))) else {
            panic!("not covered")
        };
        assert_eq!((covered.host_index, &*covered.host_name), (10, "veth1"));
        assert_eq!((covered.inside_index, &*covered.inside_name), (2, "eth0"));
        assert_eq!(covered.mac, [2, 0, 0, 0, 0, 7]);
        assert_eq!(covered.addresses.len(), 2);
    }

    #[test]
    fn an_interface_that_only_looks_like_the_other_end_is_not() {
        let eth0 = || veth(2, "eth0", 10, Some(0));
        let elsewhere = "the other end of eth0 is in another namespace than the agent";
        let macvlan = Link {
            kind: Some("macvlan".into()),
            ..veth(10, "a", 2, Some(INSIDE))
        };
        for other in [
            veth(11, "another index", 2, Some(INSIDE)),
            veth(10, "another peer", 3, Some(INSIDE)),
            veth(10, "another namespace", 2, Some(5)),
            veth(10, "this namespace", 2, None),
            macvlan,
        ] {
            assert_eq!(why_not(&[other], eth0()), elsewhere);
        }
    }

    #[test]
    fn a_namespace_without_a_number_has_no_end_here() {
        let node = [veth(10, "a pair here", 2, None)];
        let link = veth(2, "eth0", 10, Some(0));
        let inside = [InsideLink {
            link,
            addresses: Vec::new(),
        }];
        let found = cover(&node, None, &inside);
        assert!(
            matches!(found[..], [Coverage::Uncovered { .. }]),
            "{found:?}"
        );
    }

    #[test]
    fn what_only_leads_to_other_links_inside_is_internal() {
        let of_kind = |kind: &str, nsid| Link {
            kind: Some(kind.into()),
            ..veth(3, "x", 2, nsid)
        };
        for link in [
            veth(3, "x", 2, None),
            of_kind("macvlan", None),
            of_kind("sit", None),
            of_kind("dummy", None),
        ] {
            let found = one(&[], link);
            assert!(matches!(found, Coverage::Internal { .. }), "{found:?}");
        }
        for (kind, nsid) in [
            ("macvlan", Some(0)),
            ("sit", Some(0)),
            ("tun", None),
            ("new", None),
        ] {
            let why = why_not(&[], of_kind(kind, nsid));
            assert!(why.starts_with(&format!("x is a {kind}")), "{why}");
        }
    }

    #[test]
    fn hardware_and_a_veth_without_its_other_end_are_uncovered() {
        let hardware = Link {
            kind: None,
            peer: None,
            ..veth(2, "eth1", 0, None)
        };
        assert!(why_not(&[], hardware).contains("no host side"));
        let lost = Link {
            peer: None,
            ..veth(2, "eth0", 0, None)
        };
        assert_eq!(why_not(&[], lost), "eth0 has lost its other end");
    }
}
