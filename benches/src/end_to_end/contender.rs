//! Who is compared.

use serde::{Deserialize, Serialize};

/// What is between client and server. A number is that of entries, all but the
/// one for the server (nftables: one per protocol) for somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    Nothing,
    /// Programs on the hooks that return at once.
    Empty,
    /// Programs on the hooks that only look up; see `zt-floor`.
    Minimal,
    /// Ours, in audit mode, with one entry.
    Audit,
    /// Ours, in enforce mode.
    Enforce(u32),
    /// nftables, one set, every packet looked up.
    Set(u32),
    /// The same, for the first packet of a connection.
    SetTracked(u32),
    /// nftables, a rule each, the server's last.
    Linear(u32),
}

impl Contender {
    pub const ALL: [Self; 14] = [
        Self::Nothing,
        Self::Empty,
        Self::Minimal,
        Self::Audit,
        Self::Enforce(1),
        Self::Enforce(1_000),
        Self::Enforce(65_536),
        Self::Set(1),
        Self::Set(1_000),
        Self::Set(65_536),
        Self::SetTracked(1),
        Self::SetTracked(1_000),
        Self::SetTracked(65_536),
        Self::Linear(1_000),
    ];

    /// Whether it lets nothing pass to [`super::place::FORBIDDEN`].
    #[must_use]
    pub const fn denies(self) -> bool {
        !matches!(
            self,
            Self::Nothing | Self::Empty | Self::Minimal | Self::Audit
        )
    }

    /// For people, and short.
    #[must_use]
    pub fn title(self) -> String {
        match self {
            Self::Nothing => "none".into(),
            Self::Empty => "empty programs".into(),
            Self::Minimal => "minimal programs".into(),
            Self::Audit => "zt-agent, audit".into(),
            Self::Enforce(entries) => format!("zt-agent, {}", short(entries)),
            Self::Set(entries) => format!("nft set, {}", short(entries)),
            Self::SetTracked(entries) => format!("nft set and conntrack, {}", short(entries)),
            Self::Linear(rules) => format!("nft rules, {}", short(rules)),
        }
    }
}

fn short(number: u32) -> String {
    match number {
        0..1_000 => number.to_string(),
        1_000..65_536 => format!("{}k", number / 1_000),
        _ => format!("{}k", number / 1_024),
    }
}

/// In which order the contenders of a round run. Every other round goes back the
/// way that the one before it came, so that a machine that gets faster or slower
/// favours nobody; and the next two begin with somebody else.
#[must_use]
pub fn order(contenders: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..contenders).collect();
    order.rotate_left(round / 2 % contenders.max(1));
    if !round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_every_round_everybody_runs_once() {
        for round in 0..10 {
            let mut order = order(4, round);
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3]);
        }
        assert!(order(0, 3).is_empty());
    }

    #[test]
    fn everybody_is_first_at_some_time() {
        let mut first: Vec<usize> = (0..8).map(|round| order(4, round)[0]).collect();
        first.sort_unstable();
        first.dedup();
        assert_eq!(first, [0, 1, 2, 3]);
    }

    #[test]
    fn nobody_always_follows_the_same_one() {
        let follows = |round: usize| {
            let order = order(5, round);
            let at = order.iter().position(|one| *one == 2).unwrap();
            at.checked_sub(1).map(|before| order[before])
        };
        let before: std::collections::BTreeSet<_> = (0..5).filter_map(follows).collect();
        assert!(before.len() > 1, "{before:?}");
    }

    #[test]
    fn titles_tell_contenders_apart() {
        let titles: std::collections::BTreeSet<String> =
            Contender::ALL.iter().map(|one| one.title()).collect();
        assert_eq!(titles.len(), Contender::ALL.len());
        assert_eq!(Contender::Enforce(65_536).title(), "zt-agent, 64k");
    }
}
