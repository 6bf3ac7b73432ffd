//! nftables in the client's namespace: what goes out is allowed by cgroup,
//! address and port, and nothing else. What comes in passes, which is less than
//! ours does.
//!
//! Sets and rules are made once, in a table without a hook, which costs
//! nothing. A turn adds the chain with the hook, and removes it afterwards; only
//! then does the kernel track connections.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{
    place::{PORT, Place, SERVER},
    rival::Rival,
};
use crate::{FIRST_PORT, PORTS, peer_address};

/// Below it nft looks for a cgroup, on every system.
const CGROUPS: &str = "/sys/fs/cgroup";

pub struct Nft {
    table: String,
    /// The rules of the chain with the hook.
    rules: Vec<String>,
    entries: usize,
}

impl Nft {
    /// One set per protocol.
    pub fn set(place: &Place, elements: u32) -> Result<Self> {
        Self::with_sets(place, format!("set{elements}"), elements, false)
    }

    /// The same after connection tracking: only what is new is looked up.
    pub fn set_tracked(place: &Place, elements: u32) -> Result<Self> {
        Self::with_sets(place, format!("tracked{elements}"), elements, true)
    }

    fn with_sets(place: &Place, table: String, elements: u32, tracked: bool) -> Result<Self> {
        let (cgroup, level) = cgroup(place)?;
        let key = format!("socket cgroupv2 level {level} . ip daddr");
        let mut script = format!("table ip {table} {{\n");
        let mut rules = Vec::new();
        if tracked {
            rules.push("ct state established,related accept".to_owned());
        }
        for protocol in ["tcp", "udp"] {
            let members = destinations(elements)
                .map(|(ip, port)| format!("\"{cgroup}\" . {ip} . {port}"))
                .collect::<Vec<_>>();
            writeln!(
                script,
                "set to_{protocol} {{ typeof {key} . {protocol} dport; elements = {{ {} }} }}",
                members.join(",\n")
            )?;
            rules.push(format!("{key} . {protocol} dport @to_{protocol} accept"));
        }
        script.push('}');
        let nft = Self {
            table,
            rules,
            entries: usize::try_from(elements)?,
        };
        run(place, &script)?;
        Ok(nft)
    }

    /// How long `nft -f` takes for a set with so many elements. It is removed again.
    pub fn load_time(place: &Place, elements: u32) -> Result<Duration> {
        let (cgroup, level) = cgroup(place)?;
        let members: Vec<String> = destinations(elements)
            .map(|(ip, port)| format!("\"{cgroup}\" . {ip} . {port}"))
            .collect();
        let script = format!(
            "table ip timed {{\nset to_tcp {{ typeof socket cgroupv2 level {level} . ip daddr . tcp dport; elements = {{ {} }} }}\n}}",
            members.join(",\n")
        );
        let start = Instant::now();
        run(place, &script)?;
        let took = start.elapsed();
        run(place, "delete table ip timed")?;
        Ok(took)
    }

    /// One rule per destination and protocol.
    pub fn linear(place: &Place, rules: u32) -> Result<Self> {
        let (cgroup, level) = cgroup(place)?;
        let table = format!("linear{rules}");
        let mut script = format!("table ip {table} {{\n");
        let mut jumps = Vec::new();
        for protocol in ["tcp", "udp"] {
            writeln!(script, "chain to_{protocol} {{")?;
            for (ip, port) in destinations(rules) {
                writeln!(
                    script,
                    "socket cgroupv2 level {level} \"{cgroup}\" ip daddr {ip} {protocol} dport {port} accept"
                )?;
            }
            script.push_str("}\n");
            jumps.push(format!("meta l4proto {protocol} jump to_{protocol}"));
        }
        script.push('}');
        run(place, &script)?;
        Ok(Self {
            table,
            rules: jumps,
            entries: usize::try_from(rules)?,
        })
    }
}

/// So many destinations that are allowed; the server's, the only one that is
/// asked for, is the last.
fn destinations(count: u32) -> impl Iterator<Item = (IpAddr, u16)> {
    let ports = u32::from(PORTS);
    let others = (0..count.saturating_sub(1)).map(move |number| {
        let nth = u16::try_from(number % ports).unwrap_or(0);
        (peer_address(number / ports), FIRST_PORT + nth * 10)
    });
    others.chain([(SERVER, PORT)])
}

/// The client's cgroup as nft wants it, and its depth in the tree.
fn cgroup(place: &Place) -> Result<(String, usize)> {
    let path = place.party.cgroup().path();
    let mount = zt_tests::cgroup::mount_point()?;
    let level = path.strip_prefix(&mount)?.components().count();
    let name = path.strip_prefix(Path::new(CGROUPS)).with_context(|| {
        format!("nft finds a cgroup only below {CGROUPS}, and cgroup2 is mounted elsewhere")
    })?;
    Ok((name.display().to_string(), level))
}

/// Runs a script, all of it or nothing, in the client's namespace.
fn run(place: &Place, script: &str) -> Result<()> {
    let netns = place.party.netns().context("the client's namespace")?;
    netns.enter(|| {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run nft: install Debian's nftables")?;
        let mut input = child.stdin.take().context("no input")?;
        // It reads everything before it says anything.
        let written = input.write_all(script.as_bytes());
        drop(input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("nft: {}", error.chars().take(500).collect::<String>());
        }
        ensure!(written.is_ok(), "nft did not read everything");
        Ok(())
    })
}

impl Rival for Nft {
    fn begin(&mut self, place: &Place) -> Result<()> {
        let table = &self.table;
        let mut script = format!(
            "add chain ip {table} output {{ type filter hook output priority 0; policy drop; }}\n"
        );
        for rule in &self.rules {
            writeln!(script, "add rule ip {table} output {rule}")?;
        }
        run(place, &script)
    }

    fn end(&mut self, place: &Place) -> Result<()> {
        let table = &self.table;
        run(
            place,
            &format!("flush chain ip {table} output\ndelete chain ip {table} output\n"),
        )
    }

    fn entries(&self) -> usize {
        self.entries
    }
}
