//! Whose an address is, and which of several prefixes counts.

use std::net::{IpAddr, SocketAddr};

use zt_common::{codes::Reason, identity};
use zt_tests::{
    node::World,
    report::Attempt,
    workload::{Server, Udp},
};

use crate::lab::{Lab, PATIENT, PORT, SHORT, denials};

fn serve(workload: &zt_tests::Workload, host: u8) -> Server {
    let at: Vec<SocketAddr> = Lab::ips(host).iter().map(|ip| (*ip, PORT).into()).collect();
    workload.serve(&at, &at).unwrap()
}

fn refused(attempt: &Attempt) -> bool {
    !attempt.connected && attempt.errno.as_deref() == Some("EPERM")
}

/// CVE-2024-47825: a denied prefix had no effect on a narrower one inside it
/// that was allowed. Here any deny that covers the address counts, whichever
/// prefix is longer and whichever rule comes first.
#[test]
fn cve_2024_47825_a_broad_denied_cidr_beats_a_narrow_allowed_one() {
    let lab = Lab::new();
    let _outside = serve(&lab.outside, 30);
    let cases = [
        (
            30,
            "10.89.7.30/32",
            ["10.89.7.0/24", "10.0.0.0/8", "0.0.0.0/0"],
        ),
        (
            30,
            "fd00:89:7::30/128",
            ["fd00:89:7::/64", "fd00::/8", "::/0"],
        ),
    ];
    let mut node = lab.node(&lab.world());
    for (at, (host, narrow, broads)) in cases.into_iter().enumerate() {
        let to = SocketAddr::from((Lab::ips(host)[at], PORT));
        let rule = |action: &str, cidr: &str| {
            format!(
                "{{action: {action}, from: {{spiffe: spiffe://test/c/ns/a}}, to: [{{cidr: \"{cidr}\", ports: any, protocol: [TCP, UDP]}}]}}"
            )
        };
        let allow = rule("allow", narrow);
        let mut enter = |rules: &[String]| {
            let world = lab
                .world()
                .rules(&format!("[{}]", rules.join(", ")))
                .unwrap();
            node.apply(&world.model).unwrap();
            node.events();
        };
        enter(std::slice::from_ref(&allow));
        assert!(lab.a.tcp(to, PATIENT).unwrap().replied(), "{to} is allowed");
        for broad in broads {
            let deny = rule("deny", broad);
            for order in [[allow.clone(), deny.clone()], [deny, allow.clone()]] {
                enter(&order);
                let tcp = lab.a.tcp(to, SHORT).unwrap();
                assert!(refused(&tcp), "{to} in {broad}: {tcp:?}");
                let udp = lab.a.udp(to, Udp::SendTo, SHORT).unwrap();
                assert!(refused(&udp), "{to} in {broad}: {udp:?}");
            }
        }
        let reasons = denials(&node.events());
        assert!(!reasons.is_empty() && reasons.iter().all(|r| *r == Reason::DeniedByRule));
    }
}

/// The same where the denied prefix is the source: the end that is asked
/// decides.
#[test]
fn cve_2024_47825_a_broad_denied_cidr_beats_a_narrow_one_at_the_receiver() {
    let lab = Lab::new();
    let mut serving = serve(&lab.b, 20);
    let rule = |action: &str, cidr: &str| {
        format!(
            "{{action: {action}, from: {{cidr: \"{cidr}\"}}, to: [{{spiffe: spiffe://test/c/ns/b, ports: any}}]}}"
        )
    };
    let open = lab
        .world()
        .rules(&format!("[{}]", rule("allow", "10.89.7.30/32")))
        .unwrap();
    let mut node = lab.node(&open);
    let to = SocketAddr::from((Lab::ips(20)[0], PORT));
    assert!(lab.outside.tcp(to, PATIENT).unwrap().replied());
    let before = serving.received().unwrap().len();
    let both = [rule("allow", "10.89.7.30/32"), rule("deny", "10.89.0.0/16")];
    node.apply(
        &lab.world()
            .rules(&format!("[{}]", both.join(", ")))
            .unwrap()
            .model,
    )
    .unwrap();
    assert!(!lab.outside.tcp(to, SHORT).unwrap().connected);
    assert_eq!(serving.received().unwrap().len(), before);
}

/// CVE-2023-27594: traffic from outside with an IPv6 source that was in no map
/// counted as the node's own, which policies let pass. Here such a source is
/// `world`, inside the cluster's ranges `unknown-peer`, and never `host`.
#[test]
fn cve_2023_27594_an_unknown_ipv6_address_is_never_the_host() {
    let lab = Lab::new();
    let netns = lab.outside.netns().unwrap();
    let strange: [IpAddr; 2] = [
        "fd00:89:7::5:5".parse().unwrap(),
        "fd00:89:7::1".parse().unwrap(),
    ];
    for address in strange {
        netns.add_address(address).unwrap();
    }
    let mut serving = serve(&lab.b, 20);
    let to = SocketAddr::from((Lab::ips(20)[1], PORT));
    let froms: Vec<IpAddr> = strange.into_iter().chain([Lab::ips(30)[1]]).collect();
    let connect = |from: IpAddr, limit| {
        let (to, from) = (to.to_string(), SocketAddr::from((from, 0)).to_string());
        let arguments = ["tcp", "--connect", &to, "--from", &from];
        lab.outside.ask(&arguments, limit).unwrap()
    };
    for from in &froms {
        assert!(
            connect(*from, PATIENT).replied(),
            "without programs: {from}"
        );
    }
    let before = serving.received().unwrap().len();

    // Everything that may be said of the host, by the switch and by name.
    let host = "[{from: {reserved: host}, to: [{spiffe: \"spiffe://test/**\", ports: any, protocol: [TCP, UDP, ICMP]}]}]";
    let mut world: World = lab.world().rules(host).unwrap();
    world.model.node_addresses = vec![
        "fd00:89:7::99".parse().unwrap(),
        "10.89.7.99".parse().unwrap(),
    ];
    let mut node = lab.node(&world);
    let sources = |node: &mut zt_tests::node::Node| {
        let b = node.number("spiffe://test/c/ns/b").unwrap();
        let mut sources: Vec<u32> = (node.events().iter())
            .filter(|event| event.destination == b)
            .map(|event| event.source)
            .collect();
        sources.dedup();
        sources
    };
    for (ranges, expected) in [
        (vec![], identity::WORLD),
        (
            vec!["fd00:89:7::/48".parse().unwrap()],
            identity::UNKNOWN_PEER,
        ),
    ] {
        world.model.cluster_ranges = ranges;
        node.apply(&world.model).unwrap();
        node.events();
        for from in &froms {
            let attempt = connect(*from, SHORT);
            assert!(!attempt.connected, "{from}: {attempt:?}");
            let udp = {
                let (to, from) = (to.to_string(), SocketAddr::from((*from, 0)).to_string());
                lab.outside
                    .ask(&["udp", "--sendto", &to, "--from", &from], SHORT)
                    .unwrap()
            };
            assert!(!udp.replied(), "{from}: {udp:?}");
        }
        assert_eq!(sources(&mut node), [expected]);
    }
    // Somebody else's packet with the node's own address is not the host's.
    netns.add_address("fd00:89:7::99".parse().unwrap()).unwrap();
    let forged = connect("fd00:89:7::99".parse().unwrap(), SHORT);
    assert!(!forged.connected, "{forged:?}");
    assert_eq!(sources(&mut node), [identity::MASQUERADED]);
    assert_eq!(serving.received().unwrap().len(), before);
}
