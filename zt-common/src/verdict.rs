//! The one place where a verdict arises.
//!
//! The kernel programs gather the facts and call [`judge`]; user space calls
//! the same function to explain. Precedence (design, section 7):
//!
//! 1. quarantine, in every mode; then the node's own processes, which nobody governs
//! 2. an end whose denies are not all known is denied everything
//! 3. any deny: of the pair, or of a CIDR that covers the other end
//! 4. any allow or live grant (the compiler kept the latest deadline)
//! 5. the switch that lets `host` reach the workloads of its node
//! 6. default deny

use crate::{
    codes::{Action, Reason, Verdict},
    identity::{self, Number},
    policy::{Entry, Side},
};

/// Everything a verdict depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// One of the ends is quarantined.
    pub quarantined: bool,
    /// This end is the node's own: under the managed root, and nobody's.
    pub host: bool,
    /// This end is not enrolled.
    pub unenrolled: bool,
    /// What the policy denies this end is not all in the maps.
    pub shut: bool,
    /// The other end.
    pub peer: Number,
    /// The other end is `host`, opens the flow, and the switch is on.
    pub host_may_reach: bool,
    /// This end, or the other one on this node, enforces.
    pub enforce: bool,
    /// `CLOCK_BOOTTIME` ns.
    pub now: u64,
}

/// The outcome of one decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub reason: Reason,
    /// 0: no rule.
    pub rule: u32,
    /// End of the grant it rests on; 0: none.
    pub deadline: u64,
    /// What it would be with the policies in audit mode in force.
    pub would: Reason,
    pub would_rule: u32,
}

impl Judgement {
    /// A denial that no rule is asked about.
    #[inline(always)]
    #[must_use]
    pub const fn denied(reason: Reason, enforce: bool) -> Self {
        Self {
            verdict: if enforce {
                Verdict::Deny
            } else {
                Verdict::WouldDeny
            },
            reason,
            rule: 0,
            deadline: 0,
            would: reason,
            would_rule: 0,
        }
    }

    /// Whether the packet or call goes on.
    #[inline(always)]
    #[must_use]
    pub const fn passes(&self) -> bool {
        !matches!(self.verdict, Verdict::Deny)
    }
}

/// Decides. `entry` is what the policy says of the pair, `class` what it says
/// of the CIDRs that cover the other end; of the latter only denies count.
#[inline(always)]
#[must_use]
pub fn judge(facts: &Facts, entry: &Entry, class: &Entry) -> Judgement {
    if facts.quarantined {
        return Judgement::denied(Reason::Quarantined, true);
    }
    if facts.host {
        return Judgement {
            verdict: Verdict::Allow,
            reason: Reason::HostAllowed,
            rule: 0,
            deadline: 0,
            would: Reason::HostAllowed,
            would_rule: 0,
        };
    }
    if facts.unenrolled {
        return Judgement::denied(Reason::Unenrolled, facts.enforce);
    }
    if facts.shut {
        return Judgement::denied(Reason::NoRoom, facts.enforce);
    }
    let (reason, side) = weigh(facts, &entry.now, &class.now);
    let (would, would_side) = weigh(facts, &entry.would, &class.would);
    Judgement {
        verdict: if reason.is_allow() {
            Verdict::Allow
        } else if facts.enforce {
            Verdict::Deny
        } else {
            Verdict::WouldDeny
        },
        reason,
        rule: side.rule,
        deadline: if reason.is_allow() { side.deadline } else { 0 },
        would,
        would_rule: would_side.rule,
    }
}

/// Steps 3 to 6 of the precedence.
#[inline(always)]
fn weigh<'a>(facts: &Facts, pair: &'a Side, class: &'a Side) -> (Reason, &'a Side) {
    const NOTHING: &Side = &Side {
        deadline: 0,
        rule: 0,
        action: Action::None as u8,
        zero: [0; 3],
    };
    if class.action == Action::Deny as u8 {
        return (Reason::DeniedByRule, class);
    }
    if pair.action == Action::Deny as u8 {
        return (Reason::DeniedByRule, pair);
    }
    if pair.action == Action::Allow as u8 {
        if pair.deadline == 0 {
            return (Reason::AllowedByRule, pair);
        }
        if facts.now < pair.deadline {
            return (Reason::LiveGrant, pair);
        }
        if !facts.host_may_reach {
            return (Reason::GrantExpired, pair);
        }
    }
    if facts.host_may_reach {
        return (Reason::HostAllowed, NOTHING);
    }
    match facts.peer {
        identity::UNKNOWN_PEER => (Reason::UnknownPeer, NOTHING),
        identity::CONFLICT => (Reason::Conflict, NOTHING),
        _ => (Reason::NoPolicy, NOTHING),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(action: Action, deadline: u64) -> Side {
        Side {
            deadline,
            rule: 7,
            action: action as u8,
            zero: [0; 3],
        }
    }

    fn entry(action: Action, deadline: u64) -> Entry {
        let side = side(action, deadline);
        Entry {
            now: side,
            would: side,
            ..Entry::default()
        }
    }

    const ENFORCE: Facts = Facts {
        quarantined: false,
        host: false,
        unenrolled: false,
        shut: false,
        peer: 300,
        host_may_reach: false,
        enforce: true,
        now: 100,
    };

    #[test]
    fn quarantine_is_real_in_audit_mode_too() {
        let facts = Facts {
            quarantined: true,
            enforce: false,
            ..ENFORCE
        };
        let got = judge(&facts, &entry(Action::Allow, 0), &Entry::default());
        assert_eq!(
            (got.verdict, got.reason),
            (Verdict::Deny, Reason::Quarantined)
        );
    }

    #[test]
    fn the_nodes_own_end_is_not_governed_and_its_peer_may_be_quarantined() {
        let host = Facts {
            host: true,
            ..ENFORCE
        };
        let deny = entry(Action::Deny, 0);
        let got = judge(&host, &deny, &deny);
        assert_eq!(
            (got.verdict, got.reason, got.would),
            (Verdict::Allow, Reason::HostAllowed, Reason::HostAllowed)
        );
        let facts = Facts {
            quarantined: true,
            ..host
        };
        let got = judge(&facts, &Entry::default(), &Entry::default());
        assert_eq!(got.reason, Reason::Quarantined);
    }

    #[test]
    fn who_is_shut_is_denied_what_a_rule_or_the_switch_allows_and_may_be_quarantined() {
        let facts = Facts {
            shut: true,
            host_may_reach: true,
            peer: identity::HOST,
            ..ENFORCE
        };
        let allow = entry(Action::Allow, 0);
        let got = judge(&facts, &allow, &Entry::default());
        assert_eq!((got.passes(), got.reason), (false, Reason::NoRoom));
        let audited = Facts {
            enforce: false,
            ..facts
        };
        assert!(judge(&audited, &allow, &Entry::default()).passes());
        let quarantined = Facts {
            quarantined: true,
            ..audited
        };
        assert!(!judge(&quarantined, &allow, &Entry::default()).passes());
    }

    #[test]
    fn any_deny_beats_any_allow() {
        let allow = entry(Action::Allow, 0);
        let got = judge(&ENFORCE, &allow, &entry(Action::Deny, 0));
        assert_eq!(got.reason, Reason::DeniedByRule);
        assert!(!got.passes());
    }

    #[test]
    fn an_allow_of_a_class_does_not_count_for_a_known_peer() {
        let got = judge(&ENFORCE, &Entry::default(), &entry(Action::Allow, 0));
        assert_eq!(got.reason, Reason::NoPolicy);
    }

    #[test]
    fn a_grant_lapses_at_its_deadline() {
        let live = judge(&ENFORCE, &entry(Action::Allow, 101), &Entry::default());
        assert_eq!((live.reason, live.deadline), (Reason::LiveGrant, 101));
        let lapsed = judge(&ENFORCE, &entry(Action::Allow, 100), &Entry::default());
        assert_eq!(
            (lapsed.reason, lapsed.passes()),
            (Reason::GrantExpired, false)
        );
    }

    #[test]
    fn audit_mode_lets_a_denial_pass_and_says_so() {
        let facts = Facts {
            enforce: false,
            ..ENFORCE
        };
        let got = judge(&facts, &Entry::default(), &Entry::default());
        assert_eq!(
            (got.verdict, got.reason),
            (Verdict::WouldDeny, Reason::NoPolicy)
        );
        assert!(got.passes());
    }

    #[test]
    fn a_policy_in_audit_mode_changes_no_verdict() {
        let mut both = entry(Action::Allow, 0);
        both.would = side(Action::Deny, 0);
        let got = judge(&ENFORCE, &both, &Entry::default());
        assert_eq!(
            (got.verdict, got.would),
            (Verdict::Allow, Reason::DeniedByRule)
        );
    }

    #[test]
    fn unknown_peers_and_conflicts_have_their_own_reason() {
        for (peer, reason) in [
            (identity::UNKNOWN_PEER, Reason::UnknownPeer),
            (identity::CONFLICT, Reason::Conflict),
            (identity::WORLD, Reason::NoPolicy),
        ] {
            let facts = Facts { peer, ..ENFORCE };
            let got = judge(&facts, &Entry::default(), &Entry::default());
            assert_eq!(got.reason, reason);
        }
    }

    #[test]
    fn the_host_switch_yields_to_a_deny() {
        let facts = Facts {
            host_may_reach: true,
            peer: identity::HOST,
            ..ENFORCE
        };
        let open = judge(&facts, &Entry::default(), &Entry::default());
        assert_eq!(open.reason, Reason::HostAllowed);
        let shut = judge(&facts, &entry(Action::Deny, 0), &Entry::default());
        assert_eq!(shut.reason, Reason::DeniedByRule);
    }
}
