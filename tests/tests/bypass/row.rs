//! One way to try it, and what is expected of each layer: data.

use crate::rig::Stage;

/// What the attacker was told: an error is an errno's name.
pub type Said = Result<String, String>;

/// From, to, ports, protocol; see [`zt_tests::node::allow`].
pub type Rule = (&'static str, &'static str, &'static str, &'static str);

/// See the module.
pub struct Row {
    /// What is tried, in the words of the table.
    pub name: &'static str,
    /// A socket call that fails where the kernel lacks what the row needs;
    /// empty: nothing special.
    pub needs: &'static str,
    /// The error of the attack itself, before any program is attached, where the
    /// kernel lacks what the row needs and no other call tells; empty: none.
    pub unsupported: &'static str,
    /// Whether the attacker's identity may have raw sockets.
    pub raw_sockets: bool,
    /// The policy that forbids it: what is allowed nevertheless.
    pub rules: &'static [Rule],
    /// What is done before any program is attached.
    pub before: fn(&mut Stage),
    pub attack: fn(&mut Stage) -> Said,
    /// How its arrival is seen.
    pub seen: Seen,
    /// With the programs on the cgroup.
    pub sockets: Expect,
    /// With the programs on the interface alone. With all of them, the socket
    /// layers come first where they see it.
    pub interface: Expect,
    /// What shows that it is denied for its reason, and not because nothing
    /// works.
    pub allowed: Allowed,
}

/// A row whose every field is the usual one.
pub const USUAL: Row = Row {
    name: "",
    needs: "",
    unsupported: "",
    raw_sockets: false,
    rules: &[],
    before: |_| {},
    attack: |_| Ok(String::new()),
    seen: Seen::Packet,
    sockets: Expect::Passes,
    interface: Expect::Passes,
    allowed: Allowed::Nothing(""),
};

impl Row {
    /// What is expected of all layers together: the first one that sees it
    /// stops it. On the way in that is the interface.
    pub fn first(&self) -> &Expect {
        match (&self.sockets, &self.interface) {
            (Expect::Passes, interface) => interface,
            (Expect::Denied { .. }, interface @ Expect::Denied { hook: TO, .. }) => interface,
            (sockets, _) => sockets,
        }
    }
}

/// How the receiver knows that something arrived.
#[derive(Clone, Copy)]
pub enum Seen {
    /// Any frame at its interface that is more than plumbing.
    Packet,
    /// A frame at its interface that the function knows.
    Frame(fn(&[u8]) -> bool),
    /// Whatever the function finds.
    Taken(fn(&mut Stage) -> bool),
}

/// What a set of layers does with it.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// Nothing arrives and one record says so.
    Denied {
        /// The one hook that records it.
        hook: &'static str,
        reason: &'static str,
        caller: Caller,
        /// Reasons of further records by the same hook, of an attack that is
        /// more than one flow.
        then: &'static [&'static str],
    },
    /// These layers do not see it, or see nothing forbidden in it: it arrives.
    Passes,
}

/// What the caller sees of a denial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// This errno.
    Gets(&'static str),
    /// No answer, until its own patience ends.
    Waits,
    /// Success.
    Silent,
}

/// What passes under which rules.
#[derive(Clone, Copy)]
pub enum Allowed {
    /// The same attack.
    Rules(&'static [Rule]),
    /// The same attack, of an identity that may have raw sockets.
    Granted(&'static [Rule]),
    /// Something like it, without what makes it an attack.
    Instead(&'static [Rule], fn(&mut Stage) -> Said),
    /// Nothing: the reason why there is nothing to compare.
    Nothing(&'static str),
}

/// The socket layers refuse the call.
pub const fn refused(hook: &'static str, reason: &'static str) -> Expect {
    Expect::Denied {
        hook,
        reason,
        caller: Caller::Gets("EPERM"),
        then: &[],
    }
}

/// A packet is dropped and the caller is not told.
pub const fn dropped(hook: &'static str, reason: &'static str) -> Expect {
    Expect::Denied {
        hook,
        reason,
        caller: Caller::Silent,
        then: &[],
    }
}

/// A packet is dropped and the caller waits for an answer.
pub const fn unanswered(hook: &'static str, reason: &'static str) -> Expect {
    Expect::Denied {
        hook,
        reason,
        caller: Caller::Waits,
        then: &[],
    }
}

/// As [`dropped`], with more records.
pub const fn dropped_all(
    hook: &'static str,
    reason: &'static str,
    then: &'static [&'static str],
) -> Expect {
    Expect::Denied {
        hook,
        reason,
        caller: Caller::Silent,
        then,
    }
}

pub const EGRESS: &str = "cgroup_skb/egress";
pub const INGRESS: &str = "cgroup_skb/ingress";
pub const FROM: &str = "tc/from-workload";
pub const TO: &str = "tc/to-workload";

/// Makes each row a test of its own.
macro_rules! rows {
    ($($(#[$meta:meta])* $test:ident => $row:expr;)+) => {
        /// In the order of the table.
        const TESTS: &[&str] = &[$(stringify!($test),)+];
        $(
            #[test]
            $(#[$meta])*
            fn $test() {
                use $crate::row::*;
                const ROW: Row = $row;
                let place = $crate::table::place(module_path!(), TESTS, stringify!($test));
                $crate::rig::run(place, &ROW);
            }
        )+
    };
}
pub(crate) use rows;
