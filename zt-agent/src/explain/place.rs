//! Which row of which map decides, so that one can look for oneself.

use std::path::Path;

use zt_common::{
    codes::Protocol,
    identity::Number,
    policy::{PolicyKey, RANGE_PREFIX, RangeKey},
};

use super::said::Pair;
use crate::compile::Tables;

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Policy(PolicyKey),
    Range(RangeKey),
    Trust(Number),
    Workload(u64),
    Control,
}

/// The row that answers for a port of a pair, and whether it is there. If
/// none is, the one that would be looked at first.
#[must_use]
pub fn of_port(tables: &Tables, pair: &Pair, port: u16) -> (Place, bool) {
    let icmp = pair.protocol == Protocol::Icmp as u8;
    let exact = PolicyKey {
        source: pair.source,
        destination: pair.destination,
        port: if icmp { 0 } else { port },
        protocol: pair.protocol,
        zero: 0,
    };
    let rest = PolicyKey { port: 0, ..exact };
    if tables.policy.contains_key(&exact) {
        return (Place::Policy(exact), true);
    }
    match tables.policy.get(&rest) {
        None => (Place::Policy(exact), false),
        Some(entry) if entry.ranges != 0 => match block(tables, &exact) {
            Some(block) => (Place::Range(block), true),
            None => (Place::Policy(rest), true),
        },
        Some(_) => (Place::Policy(rest), true),
    }
}

fn block(tables: &Tables, key: &PolicyKey) -> Option<RangeKey> {
    (0..=u16::BITS).rev().find_map(|bits| {
        let mask = u16::MAX.checked_shl(u16::BITS - bits).unwrap_or(0);
        let block = RangeKey {
            prefix_len: RANGE_PREFIX + bits,
            port: (key.port & mask).to_be_bytes(),
            ..RangeKey::lookup(key)
        };
        tables.range.contains_key(&block).then_some(block)
    })
}

impl Place {
    /// Name of the map.
    #[must_use]
    pub fn map(&self) -> &'static str {
        match self {
            Self::Policy(_) => "zt_policy_v1",
            Self::Range(_) => "zt_range_v1",
            Self::Trust(_) => "zt_trust_v1",
            Self::Workload(_) => "zt_workload_v1",
            Self::Control => "zt_control_v1",
        }
    }

    /// The key's bytes, as they lie in the map.
    #[must_use]
    pub fn key(&self) -> Vec<u8> {
        match self {
            Self::Policy(key) => [
                &key.source.to_ne_bytes()[..],
                &key.destination.to_ne_bytes(),
                &key.port.to_ne_bytes(),
                &[key.protocol, key.zero],
            ]
            .concat(),
            Self::Range(key) => [
                &key.prefix_len.to_ne_bytes()[..],
                &key.source,
                &key.destination,
                &[key.protocol],
                &key.zero,
                &key.port,
            ]
            .concat(),
            Self::Trust(number) => number.to_ne_bytes().to_vec(),
            Self::Workload(cgroup) => cgroup.to_ne_bytes().to_vec(),
            Self::Control => vec![0; 4],
        }
    }

    /// The command that shows the row. `maps`: where the maps are pinned.
    #[must_use]
    pub fn command(&self, maps: &Path) -> String {
        let bytes: Vec<String> = (self.key().iter())
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!(
            "bpftool map lookup pinned {} key hex {}",
            maps.join(self.map()).display(),
            bytes.join(" ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::samples::{allow, built, endpoint, model, policy, workload};

    #[test]
    fn a_key_has_the_length_of_its_map() {
        let policy = Place::Policy(PolicyKey::default());
        assert_eq!(policy.key().len(), size_of::<PolicyKey>());
        let range = Place::Range(RangeKey::default());
        assert_eq!(range.key().len(), size_of::<RangeKey>());
    }

    #[test]
    fn the_command_can_be_pasted() {
        let key = PolicyKey {
            source: 256,
            destination: 257,
            port: 5432,
            protocol: 6,
            zero: 0,
        };
        assert_eq!(
            Place::Policy(key).command(Path::new("/sys/fs/bpf/zt/maps")),
            "bpftool map lookup pinned /sys/fs/bpf/zt/maps/zt_policy_v1 key hex 00 01 00 00 01 01 00 00 38 15 06 00"
        );
    }

    #[test]
    fn the_row_that_answers_is_named() {
        let mut world = model();
        world.workloads = vec![workload("a", 10)];
        world.endpoints = vec![endpoint("10.0.0.1", "a", 10), endpoint("10.0.0.2", "b", 0)];
        world.policies = vec![policy(
            "p",
            vec![allow(1, "a", "b").ports(&[(80, 80), (8000, 8191)])],
        )];
        let built = built(&world);
        let pair = Pair {
            source: built.number("a"),
            destination: built.number("b"),
            protocol: 6,
        };
        let at = |port| of_port(built.tables(), &pair, port);
        assert!(matches!(at(80), (Place::Policy(key), true) if key.port == 80));
        assert!(matches!(at(8100), (Place::Range(_), true)));
        assert!(matches!(at(7000), (Place::Policy(key), true) if key.port == 0));
        let back = Pair {
            source: pair.destination,
            destination: pair.source,
            ..pair
        };
        let silent = of_port(built.tables(), &back, 80);
        assert!(matches!(silent, (Place::Policy(key), false) if key.port == 80));
    }
}
