//! The default drop: nothing gets in by a managed interface that our program
//! on it has not seen and marked.
//!
//! The program is attached after an interface appears, and a process may send
//! before that. The drop goes by the interface's name and is there beforehand.
//! It is one nf_tables table in three families, for the network namespace of
//! the calling thread:
//!
//! | family, chain | stops |
//! |---|---|
//! | bridge, prerouting | what a bridge would forward, or take up to the node |
//! | inet, prerouting | what the node would route, or take for itself |
//! | arp, input | what the node would answer or learn |
//!
//! What is neither IP nor ARP and not bridged (LLDP, PPPoE, VLANs on top of the
//! interface) goes only to sockets and devices of the node that ask for it; the
//! program stops it once attached.

use std::collections::BTreeMap;

use crate::{
    model::InterfacePattern,
    netlink::{
        NetlinkError,
        nftables::{self, Chain, Counter, Expression, Failed, Family, Present, Transaction},
    },
};

/// The name of the table in every family.
pub const TABLE: &str = "zt-agent";

const CHAINS: &[Chain] = &[
    chain(Family::Bridge, "prerouting"),
    chain(Family::Inet, "prerouting"),
    chain(Family::Arp, "input"),
];

const FAMILIES: &[Family] = &[Family::Bridge, Family::Inet, Family::Arp];

/// Before connection tracking, reassembly and everybody else's tables.
const PRIORITY: i32 = i32::MIN;

/// `IFNAMSIZ`
const NAME: usize = 16;

const fn chain(family: Family, name: &'static str) -> Chain {
    Chain {
        family,
        table: TABLE,
        name,
        // The first of each family.
        hook: 0,
        priority: PRIORITY,
    }
}

/// Why the default drop is not in place.
#[derive(Debug, thiserror::Error)]
pub enum DefaultDropError {
    #[error("interfaces.mark is {0:#x}: it must be exactly one bit")]
    Mark(u32),
    #[error(
        "this kernel has no nf_tables, without which a new interface is not governed from its first packet: {0}; load the module nf_tables (CONFIG_NF_TABLES)"
    )]
    NoNfTables(NetlinkError),
    #[error(
        "this kernel's nf_tables has no chains for {family}, without which a new interface is not governed from its first packet: {source}; it needs {option}"
    )]
    NoFamily {
        family: &'static str,
        option: &'static str,
        source: NetlinkError,
    },
    #[error("the default drop: {0}")]
    Netlink(#[from] NetlinkError),
}

/// What was dropped in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    pub family: Family,
    pub packets: u64,
    pub bytes: u64,
}

/// Puts it in place for interfaces of these names, instead of what was there:
/// packets without the bit of `mark` are dropped. There is no instant without
/// either. Nothing is managed without a pattern, and nothing dropped.
///
/// # Errors
/// When the mark is not one bit or the kernel refuses; what was in place
/// before is then still.
pub fn install(patterns: &[InterfacePattern], mark: u32) -> Result<(), DefaultDropError> {
    if !mark.is_power_of_two() {
        return Err(DefaultDropError::Mark(mark));
    }
    if patterns.is_empty() {
        return remove();
    }
    // In place, so that it goes on to count.
    if is_in_place(patterns, mark)? {
        return Ok(());
    }
    let rules = rules(patterns, mark);
    // New rules in the chain that is there change for every packet at once. A
    // chain beside it would not: a packet between the two could find the one
    // not yet and the other no longer there.
    let replaced = fill(make_tables(Transaction::default()), &rules).commit();
    replaced.or_else(|_| rebuild(&rules))
}

/// For a table in which somebody has changed more than rules.
fn rebuild(rules: &[Vec<Expression>]) -> Result<(), DefaultDropError> {
    let deleted = delete_tables(make_tables(Transaction::default()));
    fill(make_tables(deleted), rules).commit().map_err(explain)
}

/// Removes it, if it is there.
///
/// # Errors
/// When the kernel refuses.
pub fn remove() -> Result<(), DefaultDropError> {
    // Made first, there is always one to delete.
    let transaction = delete_tables(make_tables(Transaction::default()));
    transaction.commit().map_err(explain)
}

/// Whether exactly what [`install`] makes is there.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn is_in_place(patterns: &[InterfacePattern], mark: u32) -> Result<bool, DefaultDropError> {
    if patterns.is_empty() {
        return Ok(present_tables()?.is_empty());
    }
    let wanted = rules(patterns, mark);
    for chain in CHAINS {
        let present = nftables::read(chain).map_err(unread)?;
        if !present.is_some_and(|present| is_as_wanted(&present, &wanted)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What was dropped since it was put in place, by family; nothing for those
/// where it is not.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn counters() -> Result<Vec<Dropped>, DefaultDropError> {
    let mut families: BTreeMap<Family, Counter> = BTreeMap::new();
    for chain in CHAINS {
        let Some(present) = nftables::read(chain).map_err(unread)? else {
            continue;
        };
        let sum = families.entry(chain.family).or_default();
        for expression in present.rules.iter().flatten() {
            if let Expression::Count(counter) = expression {
                sum.packets += counter.packets;
                sum.bytes += counter.bytes;
            }
        }
    }
    let dropped = families.into_iter().map(|(family, counter)| Dropped {
        family,
        packets: counter.packets,
        bytes: counter.bytes,
    });
    Ok(dropped.collect())
}

fn present_tables() -> Result<Vec<Family>, DefaultDropError> {
    let mut found = Vec::new();
    for family in FAMILIES {
        if nftables::has_table(*family, TABLE).map_err(unread)? {
            found.push(*family);
        }
    }
    Ok(found)
}

fn make_tables(transaction: Transaction) -> Transaction {
    let table = |transaction: Transaction, family: &Family| transaction.table(*family, TABLE);
    FAMILIES.iter().fold(transaction, table)
}

fn delete_tables(transaction: Transaction) -> Transaction {
    let delete =
        |transaction: Transaction, family: &Family| transaction.delete_table(*family, TABLE);
    FAMILIES.iter().fold(transaction, delete)
}

/// Replaces the rules of every chain.
fn fill(transaction: Transaction, rules: &[Vec<Expression>]) -> Transaction {
    CHAINS.iter().fold(transaction, |transaction, chain| {
        let empty = transaction.chain(chain).flush(chain);
        let rule = |transaction: Transaction, rule: &Vec<Expression>| transaction.rule(chain, rule);
        rules.iter().fold(empty, rule)
    })
}

/// One rule for each pattern.
fn rules(patterns: &[InterfacePattern], mark: u32) -> Vec<Vec<Expression>> {
    let rule = |pattern: &InterfacePattern| {
        vec![
            Expression::LoadInterface,
            Expression::Equals(name(pattern)),
            Expression::LoadMark,
            Expression::And(mark),
            Expression::Equals(0u32.to_ne_bytes().to_vec()),
            Expression::Count(Counter::default()),
            Expression::Drop,
        ]
    };
    patterns.iter().map(rule).collect()
}

/// The kernel compares as many bytes as there are: of a whole name those
/// after its end, too.
fn name(pattern: &InterfacePattern) -> Vec<u8> {
    let mut bytes = pattern.text().as_bytes().to_vec();
    if !pattern.is_prefix() {
        bytes.resize(NAME, 0);
    }
    bytes
}

fn is_as_wanted(present: &Present, wanted: &[Vec<Expression>]) -> bool {
    let uncounted = |rule: &Vec<Expression>| {
        let step = rule.iter().map(|expression| match expression {
            Expression::Count(_) => Expression::Count(Counter::default()),
            other => other.clone(),
        });
        step.collect::<Vec<_>>()
    };
    present.intact
        && present
            .rules
            .iter()
            .map(uncounted)
            .eq(wanted.iter().cloned())
}

fn unread(source: NetlinkError) -> DefaultDropError {
    explain(Failed {
        family: None,
        source,
    })
}

/// Says which part of the kernel is missing, where the error means that.
fn explain(failed: Failed) -> DefaultDropError {
    const MISSING: &[i32] = &[
        libc::ENOENT,
        libc::EOPNOTSUPP,
        libc::EAFNOSUPPORT,
        libc::EPROTONOSUPPORT,
    ];
    let Failed { family, source } = failed;
    match (source.errno(), family) {
        (Some(errno), Some(family)) if MISSING.contains(&errno) => DefaultDropError::NoFamily {
            family: family.name(),
            option: option(family),
            source,
        },
        (Some(errno), None) if MISSING.contains(&errno) => DefaultDropError::NoNfTables(source),
        _ => source.into(),
    }
}

fn option(family: Family) -> &'static str {
    match family {
        Family::Bridge => "CONFIG_NF_TABLES_BRIDGE",
        Family::Inet => "CONFIG_NF_TABLES_INET",
        Family::Arp => "CONFIG_NF_TABLES_ARP",
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn refused(errno: i32) -> NetlinkError {
        NetlinkError::Refused {
            what: "chain bridge prerouting".into(),
            source: io::Error::from_raw_os_error(errno),
            text: None,
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_named() {
        let of_family = |family, errno| {
            let source = refused(errno);
            explain(Failed { family, source }).to_string()
        };
        let bridge = of_family(Some(Family::Bridge), libc::EOPNOTSUPP);
        assert!(bridge.contains("CONFIG_NF_TABLES_BRIDGE"), "{bridge}");
        let all = of_family(None, libc::EOPNOTSUPP);
        assert!(all.contains("CONFIG_NF_TABLES)"), "{all}");
        let other = of_family(Some(Family::Bridge), libc::EPERM);
        assert!(!other.contains("CONFIG"), "{other}");
    }

    #[test]
    fn a_whole_name_is_compared_to_its_end_and_a_prefix_is_not() {
        let bytes = |text: &str| name(&text.parse().unwrap());
        assert_eq!(bytes("veth*"), b"veth");
        assert_eq!(bytes("eth0"), b"eth0\0\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn counters_make_no_difference_and_anything_else_does() {
        let wanted = rules(&["veth*".parse().unwrap()], 0x10);
        let present = |change: fn(&mut Vec<Vec<Expression>>), intact| {
            let mut rules = wanted.clone();
            change(&mut rules);
            is_as_wanted(&Present { intact, rules }, &wanted)
        };
        let counted = |rules: &mut Vec<Vec<Expression>>| {
            rules[0][5] = Expression::Count(Counter {
                packets: 9,
                bytes: 99,
            });
        };
        assert!(present(counted, true));
        assert!(!present(|_| (), false));
        assert!(!present(|rules| rules.truncate(0), true));
        assert!(!present(|rules| rules.insert(0, Vec::new()), true));
        assert!(!present(|rules| rules[0][3] = Expression::And(0x20), true));
        let other = |rules: &mut Vec<Vec<Expression>>| {
            rules[0].insert(0, Expression::Other("limit".into()));
        };
        assert!(!present(other, true));
    }
}
