//! Addresses and ranges of addresses.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::field::Field;

/// A network: `203.0.113.0/24`.
pub fn network(field: &Field<'_>) -> Option<IpNet> {
    let text = field.text()?;
    let Ok(net) = text.parse::<IpNet>() else {
        return not_a_network(field, text);
    };
    if net != net.trunc() {
        return field.refuse(
            format!("{text:?} has bits set behind its prefix"),
            format!(
                "write {} for the network, or {} for the one address",
                net.trunc(),
                host(net.addr())
            ),
        );
    }
    // The kernel sees a mapped address as the IPv4 address that it is, so a
    // rule for the mapped range would never match.
    match mapped(&net) {
        Some(v4) => field.refuse(
            format!("{text:?} is a range of IPv4-mapped addresses, which count as IPv4"),
            format!("write {v4}"),
        ),
        None => Some(net),
    }
}

fn not_a_network<T>(field: &Field<'_>, text: &str) -> Option<T> {
    match text.parse::<IpAddr>() {
        Ok(ip) => field.refuse(
            format!("{text:?} has no prefix length"),
            format!("write {} for this one address", host(ip)),
        ),
        Err(_) => field.refuse(
            format!("{text:?} is no network"),
            "write it like 203.0.113.0/24 or 2001:db8::/32",
        ),
    }
}

fn host(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}

fn mapped(net: &IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(v6) = net else { return None };
    let prefix = v6.prefix_len().checked_sub(96)?;
    Ipv4Net::new(v6.addr().to_ipv4_mapped()?, prefix).ok()
}

/// An address that somebody can be at. An IPv4-mapped one becomes IPv4.
pub fn address(field: &Field<'_>) -> Option<IpAddr> {
    let text = field.text()?;
    let Ok(ip) = text.parse::<IpAddr>() else {
        let hint = match text.parse::<IpNet>() {
            Ok(_) => "write single addresses, without a prefix length",
            Err(_) => "write it like 10.89.0.2 or \"fd00::2\"",
        };
        return field.refuse(format!("{text:?} is no IP address"), hint);
    };
    let ip = ip.to_canonical();
    let what = if ip.is_unspecified() {
        "the unspecified address"
    } else if ip.is_multicast() {
        "a multicast address"
    } else if ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        "the broadcast address"
    } else {
        return Some(ip);
    };
    field.refuse(format!("{text:?} is {what}: nobody is there alone"), "")
}
