//! Processes in cgroups where nobody expects them.

use crate::{
    rig::{B, Stage},
    row::{Said, rows},
};

const TCP_ALLOWED: &[crate::row::Rule] = &[("a", "b", "[8080]", "TCP")];

fn takes_port(stage: &mut Stage, kind: &str, at: &str) -> Said {
    let said = stage.call(kind, &format!("bind {{}} {at}"))?;
    stage.held = vec![0];
    Ok(said)
}

rows! {
    a_nested_cgroup_is_its_workload => Row {
        name: "a process in a deeply nested cgroup",
        before: |stage| stage.nest(6),
        attack: |stage| stage.call("tcp4", &format!("connect {{}} {B}:8080")),
        sockets: refused("connect4", "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(TCP_ALLOWED),
        ..USUAL
    };

    a_process_that_moved_to_nobodys_cgroup_is_nobody => Row {
        name: "a process moved to a cgroup that nobody enrolled",
        rules: TCP_ALLOWED,
        before: |stage| {
            let pid = stage.a.pid();
            stage.sandbox.cgroup().child("nobodys").unwrap().add(pid).unwrap();
        },
        attack: |stage| stage.call("tcp4", &format!("connect {{}} {B}:8080")),
        sockets: refused("connect4", "unenrolled"),
        // The interface says whose it is.
        interface: Expect::Passes,
        allowed: Allowed::Nothing("nothing is allowed to nobody"),
        ..USUAL
    };

    a_process_that_moved_is_what_it_became => Row {
        name: "a process moved to another workload's cgroup",
        rules: TCP_ALLOWED,
        before: |stage| {
            let pid = stage.a.pid();
            stage.other.add(pid).unwrap();
        },
        attack: |stage| stage.call("tcp4", &format!("connect {{}} {B}:8080")),
        sockets: refused("connect4", "no-policy"),
        interface: Expect::Passes,
        allowed: Allowed::Rules(&[("d", "b", "[8080]", "TCP"), ("a", "b", "[8080]", "TCP")]),
        ..USUAL
    };

    a_process_outside_every_cgroup_is_seen_at_the_interface => Row {
        name: "a process that entered the namespace from outside the managed cgroups",
        before: |stage| stage.a = stage.outsider(),
        attack: |stage| stage.call("tcp4", &format!("connect {{}} {B}:8080")),
        sockets: Expect::Passes,
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(TCP_ALLOWED),
        ..USUAL
    };

    a_declared_port_is_not_taken => Row {
        name: "a port that another workload of the namespace declared",
        before: |stage| stage.a = stage.thief(),
        attack: |stage| takes_port(stage, "tcp4", "127.0.0.1:9999"),
        // Whoever has the port would be asked.
        seen: Seen::Taken(|stage| stage.held.pop().is_some()),
        sockets: refused("bind4", "port-owned"),
        interface: Expect::Passes,
        allowed: Allowed::Nothing("a port has one owner"),
        ..USUAL
    };

    a_declared_port_is_not_taken_by_ipv6 => Row {
        name: "a port, IPv6, that another workload of the namespace declared",
        before: |stage| stage.a = stage.thief(),
        attack: |stage| takes_port(stage, "tcp6", "[::1]:9999"),
        // Whoever has the port would be asked.
        seen: Seen::Taken(|stage| stage.held.pop().is_some()),
        sockets: refused("bind6", "port-owned"),
        interface: Expect::Passes,
        allowed: Allowed::Nothing("a port has one owner"),
        ..USUAL
    };
}
