//! Links, addresses and namespace ids of the caller's network namespace.
//!
//! Layouts: `struct ifinfomsg`, `struct ifaddrmsg` and their attributes in the
//! kernel's `include/uapi/linux/{rtnetlink,if_link,if_addr,net_namespace}.h`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use super::{
    NetlinkError,
    message::{self, Attributes, Malformed, Message},
    socket::{Protocol, Reply, Socket},
};

pub(super) const NEW_LINK: u16 = 16;
pub(super) const DELETED_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
pub(super) const NEW_NSID: u16 = 88;
pub(super) const DELETED_NSID: u16 = 89;
const GET_NSID: u16 = 90;

/// Bytes of `struct ifinfomsg`, `struct ifaddrmsg` and `struct rtgenmsg`.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const NSID_HEADER: usize = 4;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;

/// An interface as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `veth`, `bridge`, `macvlan`; none for hardware and loopback.
    pub kind: Option<String>,
    /// None where addresses have another length.
    pub mac: Option<[u8; 6]>,
    /// The other end of a veth, the lower interface of a macvlan or VLAN:
    /// its index where it is.
    pub peer: Option<u32>,
    /// Our number for the namespace in which `peer` is; none if that is this
    /// one.
    pub peer_nsid: Option<i32>,
    /// The bridge or bond it is a port of.
    pub master: Option<u32>,
    pub up: bool,
    pub loopback: bool,
}

/// The links of the caller's namespace.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list() -> Result<Vec<Link>, NetlinkError> {
    Links::open()?.list()
}

/// Asks about one namespace, several times.
#[derive(Debug)]
pub struct Links(Socket);

impl Links {
    /// About the caller's.
    ///
    /// # Errors
    /// When there is no descriptor.
    pub fn open() -> Result<Self, NetlinkError> {
        Socket::open(Protocol::Route).map(Self)
    }

    /// The links.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn list(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let request = Message::new(GET_LINK, 0, &[0; LINK_HEADER], &Attributes::new());
        let replies = self.0.dump("links", request)?;
        let links = replies.iter().filter(|reply| reply.kind == NEW_LINK);
        links
            .map(|reply| link(&reply.body).map_err(NetlinkError::answer("links")))
            .collect()
    }

    /// The addresses, each with the index of its link.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn addresses(&mut self) -> Result<Vec<(u32, IpAddr)>, NetlinkError> {
        let request = Message::new(GET_ADDRESS, 0, &[0; ADDRESS_HEADER], &Attributes::new());
        let replies = self.0.dump("addresses", request)?;
        let found = replies.iter().filter(|reply| reply.kind == NEW_ADDRESS);
        found
            .filter_map(|reply| address(&reply.body).transpose())
            .map(|address| address.map_err(NetlinkError::answer("addresses")))
            .collect()
    }

    /// The namespace's number for another one, as in [`Link::peer_nsid`]. It gets
    /// one when a link of it is listed first.
    ///
    /// # Errors
    /// When the file is no network namespace, or the kernel cannot be asked.
    pub fn namespace_id(&mut self, other: BorrowedFd<'_>) -> Result<Option<i32>, NetlinkError> {
        let what = "number of a network namespace";
        let file = other.as_raw_fd().cast_unsigned();
        let attributes = Attributes::new().u32(NETNSA_FD, file);
        let request = Message::new(GET_NSID, 0, &[0; NSID_HEADER], &attributes);
        let replies = self.0.ask(what, request)?;
        let reply = replies.iter().find(|reply| reply.kind == NEW_NSID);
        nsid(reply).map_err(NetlinkError::answer(what))
    }
}

fn nsid(reply: Option<&Reply>) -> Result<Option<i32>, Malformed> {
    let body = &reply.ok_or(Malformed)?.body;
    let attributes = body.get(NSID_HEADER..).ok_or(Malformed)?;
    let number = message::find(attributes, NETNSA_NSID)?.ok_or(Malformed)?;
    let number = message::i32_at(number, 0)?;
    // -1 says that it has none.
    Ok((number >= 0).then_some(number))
}

/// Reads what follows the header of a link message.
pub(super) fn link(body: &[u8]) -> Result<Link, Malformed> {
    let flags = message::u32_at(body, 8)?;
    let mut link = Link {
        index: message::u32_at(body, 4)?,
        up: flags & IFF_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
        ..Link::default()
    };
    for attribute in message::attributes(body.get(LINK_HEADER..).ok_or(Malformed)?) {
        let (kind, value) = attribute?;
        match kind {
            IFLA_IFNAME => link.name = message::text(value),
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_LINK => link.peer = index(value)?,
            IFLA_MASTER => link.master = index(value)?,
            IFLA_LINK_NETNSID => link.peer_nsid = Some(message::i32_at(value, 0)?),
            IFLA_LINKINFO => link.kind = message::find(value, IFLA_INFO_KIND)?.map(message::text),
            _ => {}
        }
    }
    Ok(link)
}

/// 0 is no interface: a veth whose other end is gone says so.
fn index(value: &[u8]) -> Result<Option<u32>, Malformed> {
    let index = message::u32_at(value, 0)?;
    Ok((index != 0).then_some(index))
}

/// The address that is the link's own: on a point-to-point link the other
/// attribute is the peer's.
fn address(body: &[u8]) -> Result<Option<(u32, IpAddr)>, Malformed> {
    let index = message::u32_at(body, 4)?;
    let attributes = body.get(ADDRESS_HEADER..).ok_or(Malformed)?;
    let local = message::find(attributes, IFA_LOCAL)?;
    let value = match local {
        Some(value) => Some(value),
        None => message::find(attributes, IFA_ADDRESS)?,
    };
    Ok(value.and_then(ip).map(|address| (index, address)))
}

/// None for the families that are not IP.
fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(value).ok()?;
    Some(Ipv6Addr::from(v6).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_and_its_address_are_listed() {
        let mut socket = Links::open().unwrap();
        let links = socket.list().unwrap();
        let lo = links.iter().find(|link| link.loopback).unwrap();
        assert_eq!((lo.name.as_str(), lo.kind.as_deref()), ("lo", None));
        let own = socket.addresses().unwrap();
        if lo.up {
            assert!(
                own.contains(&(lo.index, Ipv4Addr::LOCALHOST.into())),
                "{own:?}"
            );
        }
    }

    #[test]
    fn a_file_that_is_no_namespace_has_no_number_but_an_error() {
        use std::os::fd::AsFd as _;
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert!(Links::open().unwrap().namespace_id(file.as_fd()).is_err());
    }

    #[test]
    fn a_links_attributes_are_read() {
        let info = Attributes::new().text(IFLA_INFO_KIND, "veth");
        let attributes = Attributes::new()
            .text(IFLA_IFNAME, "p1")
            .put(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1])
            .u32(IFLA_LINK, 7)
            .u32(IFLA_MASTER, 0)
            .u32(IFLA_LINK_NETNSID, 3)
            .nest(IFLA_LINKINFO, &info);
        let mut body = vec![0; LINK_HEADER];
        body[4] = 9;
        body[8] = 1;
        body.extend(attributes.bytes());
        let expected = Link {
            index: 9,
            name: "p1".into(),
            kind: Some("veth".into()),
            mac: Some([2, 0, 0, 0, 0, 1]),
            peer: Some(7),
            peer_nsid: Some(3),
            master: None,
            up: true,
            loopback: false,
        };
        assert_eq!(link(&body), Ok(expected));
        assert_eq!(link(&body[..15]), Err(Malformed));
    }

    #[test]
    fn on_a_point_to_point_link_the_local_address_counts() {
        let body =
            |attributes: &Attributes| [&[2, 32, 0, 0, 5, 0, 0, 0], attributes.bytes()].concat();
        let peer = Attributes::new().put(IFA_ADDRESS, &[10, 0, 0, 2]);
        let both = peer.clone().put(IFA_LOCAL, &[10, 0, 0, 1]);
        let found = |attributes| address(&body(attributes)).unwrap().unwrap();
        assert_eq!(found(&both), (5, "10.0.0.1".parse().unwrap()));
        assert_eq!(found(&peer), (5, "10.0.0.2".parse().unwrap()));
        assert_eq!(address(&body(&Attributes::new())), Ok(None));
    }
}
