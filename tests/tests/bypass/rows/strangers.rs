//! Programs of somebody else on our hooks.

use zt_tests::stranger::{
    At,
    Does::{Overrule, Permit},
};

use crate::{rig::B, row::rows};

const TCP_ALLOWED: &[crate::row::Rule] = &[("a", "b", "[8080]", "TCP")];

rows! {
    a_childs_permission_is_none => Row {
        name: "a child cgroup's own program that allows",
        before: |stage| {
            stage.stranger_below(At::Connect4, Permit);
            stage.stranger_below(At::Egress, Permit);
        },
        attack: |stage| stage.call("tcp4", &format!("connect {{}} {B}:8080")),
        sockets: refused("connect4", "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(TCP_ALLOWED),
        ..USUAL
    };

    a_child_cannot_overrule => Row {
        name: "a child cgroup's own program with `bpf_set_retval(0)`",
        before: |stage| stage.stranger_below(At::Connect4, Overrule),
        attack: |stage| stage.call("tcp4", &format!("connect {{}} {B}:8080")),
        sockets: refused("connect4", "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(TCP_ALLOWED),
        ..USUAL
    };

    a_childs_permission_is_none_for_packets => Row {
        name: "a child cgroup's own packet program that allows",
        before: |stage| {
            stage.stranger_below(At::Egress, Permit);
            stage.hold(|stage| stage.a.get("socket udp4"));
        },
        attack: |stage| stage.on_held(&format!("sendto {{}} {B}:8080 x")),
        sockets: refused(EGRESS, "no-policy"),
        interface: dropped(FROM, "no-policy"),
        allowed: Allowed::Rules(&[("a", "b", "[8080]", "UDP")]),
        ..USUAL
    };

    who_overrules_the_call_still_has_no_packet => Row {
        name: "a program after ours on our own cgroup with `bpf_set_retval(0)`",
        attack: |stage| {
            let root = stage.sandbox.cgroup().clone();
            stage.stranger(&root, At::Connect4, Overrule);
            let said = stage.call("tcp4", &format!("connect {{}} {B}:8080"));
            stage.strangers.clear();
            said
        },
        sockets: unanswered("connect4", "no-policy"),
        interface: unanswered(FROM, "no-policy"),
        allowed: Allowed::Rules(TCP_ALLOWED),
        ..USUAL
    };
}
