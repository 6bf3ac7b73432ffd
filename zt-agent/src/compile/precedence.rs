//! Which of several rules decides.

use std::cmp::Reverse;

use zt_common::{
    codes::Action,
    policy::{Entry, Side},
};

use crate::model::RuleAction;

/// Place of its policy among all by their names, and the rule's number there.
pub type Rank = (usize, u32);

/// What one rule says, wherever it applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// Among all rules.
    pub rank: Rank,
    /// The rule's number in the maps.
    pub number: u32,
    pub action: RuleAction,
    /// Kernel clock (`CLOCK_BOOTTIME`, ns); 0: never.
    pub deadline: u64,
    /// Its policy is in audit mode.
    pub audit: bool,
}

/// Orders rules by precedence; the smallest decides.
pub type Weight = (u8, Reverse<u64>, Rank);

impl Ruling {
    /// 1. any deny
    /// 2. any allow; of several the permanent one, else the latest deadline
    ///
    /// Of equals the smallest (policy, rule number).
    pub const fn weight(&self) -> Weight {
        match (self.action, self.deadline) {
            (RuleAction::Deny, _) => (1, Reverse(0), self.rank),
            (RuleAction::Allow, 0) => (2, Reverse(0), self.rank),
            (RuleAction::Allow, deadline) => (3, Reverse(deadline), self.rank),
        }
    }
}

/// What a set of rules says together: now, and with the audited ones.
pub fn decide<'a>(rulings: impl Iterator<Item = &'a Ruling> + Clone) -> Entry {
    Entry {
        now: side(rulings.clone().filter(|ruling| !ruling.audit)),
        would: side(rulings),
        ..Entry::default()
    }
}

/// The one with the smallest [`Weight`]; nothing: default deny. Quarantine,
/// which stands above all this, is a matter of the kernel's.
fn side<'a>(rulings: impl Iterator<Item = &'a Ruling>) -> Side {
    let decisive = rulings.min_by_key(|ruling| ruling.weight());
    decisive.map_or(Side::default(), |ruling| match ruling.action {
        RuleAction::Deny => row(Action::Deny, 0, ruling),
        RuleAction::Allow => row(Action::Allow, ruling.deadline, ruling),
    })
}

fn row(action: Action, deadline: u64, ruling: &Ruling) -> Side {
    Side {
        deadline,
        rule: ruling.number,
        action: action as u8,
        zero: [0; 3],
    }
}

/// A wall-clock deadline in the kernel's clock. One from before the boot, and one
/// that had lapsed when the clock was set back, becomes 1, so that the denial
/// still says that a grant has expired.
pub fn deadline(expires: Option<u64>, boot_offset: u64, set_back_from: u64) -> u64 {
    expires.map_or(0, |at| {
        if at <= set_back_from {
            1
        } else {
            at.saturating_sub(boot_offset).max(1)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(rank: u32, deadline: u64) -> Ruling {
        Ruling {
            rank: (0, rank),
            number: rank + 100,
            action: RuleAction::Allow,
            deadline,
            audit: false,
        }
    }

    fn deny(rank: u32) -> Ruling {
        Ruling {
            action: RuleAction::Deny,
            ..allow(rank, 0)
        }
    }

    fn audited(ruling: Ruling) -> Ruling {
        Ruling {
            audit: true,
            ..ruling
        }
    }

    #[test]
    fn any_deny_beats_any_allow() {
        let got = decide([allow(1, 0), deny(2), allow(3, 9)].iter());
        assert_eq!((got.now.action, got.now.rule), (Action::Deny as u8, 102));
    }

    #[test]
    fn a_permanent_allow_beats_every_grant_and_the_latest_grant_the_others() {
        let both = decide([allow(1, 50), allow(2, 0)].iter());
        assert_eq!((both.now.deadline, both.now.rule), (0, 102));
        let grants = decide([allow(1, 50), allow(2, 70), allow(3, 60)].iter());
        assert_eq!((grants.now.deadline, grants.now.rule), (70, 102));
    }

    #[test]
    fn of_equals_the_first_by_name_is_named() {
        let got = decide([allow(3, 50), allow(2, 50)].iter());
        assert_eq!(got.now.rule, 102);
        let got = decide([deny(9), deny(4)].iter());
        assert_eq!(got.now.rule, 104);
    }

    #[test]
    fn a_policy_in_audit_mode_shows_only_in_would() {
        let got = decide([allow(1, 0), audited(deny(2))].iter());
        assert_eq!((got.now.action, got.would.action), (1, 2));
        let got = decide([audited(allow(1, 0))].iter());
        assert_eq!((got.now, got.would.rule), (Side::default(), 101));
    }

    #[test]
    fn a_deadline_that_had_lapsed_when_the_clock_was_set_back_stays_so() {
        assert_eq!(deadline(Some(25), 10, 25), 1);
        assert_eq!(deadline(Some(26), 10, 25), 16);
        assert_eq!(deadline(None, 10, 25), 0);
    }

    #[test]
    fn a_deadline_before_the_boot_is_expired_and_not_permanent() {
        assert_eq!(deadline(Some(10), 10, 0), 1);
        assert_eq!(deadline(Some(9), 10, 0), 1);
        assert_eq!(deadline(Some(25), 10, 0), 15);
        assert_eq!(deadline(None, 10, 0), 0);
    }
}
