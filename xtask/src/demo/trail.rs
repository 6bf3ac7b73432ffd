//! The agent's audit records, as far as the demo looks at them.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::paint;
use super::services::{Cell, Protocol, Service, Transport};
use super::tally::{Decision, Kind, Tally};

/// The hooks at which a call is decided: once for each, as its client counts it.
const CALL_HOOKS: [&str; 4] = ["connect4", "connect6", "sendmsg4", "sendmsg6"];

#[derive(Clone, Debug, Deserialize)]
pub struct Decided {
    pub decision: String,
    source: End,
    destination: End,
    policy_matched: Option<String>,
    direction: String,
    protocol: String,
    pub reason: String,
    hook: String,
    count: u64,
}

#[derive(Clone, Debug, Deserialize)]
struct End {
    spiffe_id: Option<String>,
    identity: Option<String>,
    address: Option<IpAddr>,
    port: Option<u16>,
}

impl End {
    fn service(&self) -> Option<Service> {
        Service::of_spiffe(self.spiffe_id.as_deref()?)
    }

    /// As short as it is clear in the demo.
    fn name(&self) -> String {
        let name = self.spiffe_id.as_deref().or(self.identity.as_deref());
        let name = name.unwrap_or("?");
        name.rsplit('/').next().unwrap_or(name).to_owned()
    }
}

impl Decided {
    pub fn parse(line: &str) -> Result<Self> {
        serde_json::from_str(line).with_context(|| format!("an unexpected record: {line}"))
    }

    /// Whether it is about a call of a client, not a packet or a receiver.
    pub fn is_call(&self) -> bool {
        self.direction == "egress" && CALL_HOOKS.contains(&self.hook.as_str())
    }

    /// Whether it is about a frame on its way out of a workload.
    pub fn is_frame(&self) -> bool {
        self.hook == "tc/from-workload"
    }

    /// The services at its source and destination.
    pub fn ends(&self) -> (Option<Service>, Option<Service>) {
        (self.source.service(), self.destination.service())
    }

    fn kind(&self) -> Option<Kind> {
        let (from, to) = self.ends();
        Some(Kind {
            from: from?,
            to: to?,
            protocol: Protocol::of_name(&self.protocol)?,
            decision: Decision::of_name(&self.decision)?,
        })
    }

    /// The cell that it is about; `None` if the port is not the service's own.
    pub fn cell(&self) -> Option<Cell> {
        let kind = self.kind()?;
        let address = self.destination.address?;
        (self.destination.port == Some(kind.to.port())).then_some(Cell {
            from: kind.from,
            to: kind.to,
            transport: Transport::new(kind.protocol, address.is_ipv4()),
        })
    }

    /// For people.
    pub fn line(&self) -> String {
        let decision = format!("{:<10}", self.decision);
        let decision = if self.decision == "ALLOW" {
            paint::green(&decision)
        } else {
            paint::red(&decision)
        };
        let port = self
            .destination
            .port
            .map_or_else(String::new, |port| format!(":{port}"));
        let to = format!("{}{port}", self.destination.name());
        let reason = match &self.policy_matched {
            Some(rule) => format!("{} {rule}", self.reason),
            None => self.reason.clone(),
        };
        let at = paint::dim(&format!("at {}", self.hook));
        let (from, protocol) = (self.source.name(), &self.protocol);
        format!("{decision} {from:>8} → {to:<13} {protocol}  {reason:<12} {at}")
    }
}

/// What the whole trail says.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    /// The clients' calls.
    pub calls: Tally,
    /// What was decided of frames that no call of a socket was behind.
    pub frames: Vec<Decided>,
    /// Decisions recorded, of calls and others.
    pub recorded: u64,
    /// Decisions lost, by cause.
    pub lost: Vec<(String, u64)>,
    /// How each start of the agent found the kernel.
    pub starts: Vec<String>,
    /// What the trail itself finds wrong.
    pub anomalies: Vec<String>,
}

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line {
    Decision(Box<Decided>),
    Start { kernel: String },
    Loss { cause: String, count: u64 },
    Anomaly { detail: String },
    Checkpoint {},
}

impl Trail {
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let mut trail = Self::default();
        // What follows the last line end is being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let parsed = serde_json::from_str(line);
            trail.add(parsed.with_context(|| format!("an unexpected record: {line}"))?);
        }
        Ok(trail)
    }

    fn add(&mut self, line: Line) {
        match line {
            Line::Decision(decided) => {
                self.recorded += decided.count;
                if let (true, Some(kind)) = (decided.is_call(), decided.kind()) {
                    self.calls.add(kind, decided.count);
                }
                if decided.is_frame() {
                    self.frames.push(*decided);
                }
            }
            Line::Start { kernel } => self.starts.push(kernel),
            Line::Loss { cause, count } => self.lost.push((cause, count)),
            Line::Anomaly { detail } => self.anomalies.push(detail),
            Line::Checkpoint {} => {}
        }
    }

    pub fn lost(&self) -> u64 {
        self.lost.iter().map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENIED: &str = r#"{"kind":"decision","timestamp":"2026-11-21T04:00:00.000000042Z","decision":"DENY","source":{"spiffe_id":"spiffe://hanzo.ai/hanzo-k8s/hanzo/chat","identity":null,"pod":"zt/chat","node":"demo","cgroup":4711,"port":null},"destination":{"spiffe_id":"spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres","identity":null,"pod":null,"node":null,"address":"fd00:89:1::14","port":5432},"policy_matched":null,"latency_us":42.125,"direction":"egress","protocol":"TCP","reason":"no-policy","hook":"connect6","generation":3,"cpu":1,"sequence":7,"count":3}"#;

    fn trail(lines: &[&str]) -> Trail {
        let mut trail = Trail::default();
        for line in lines {
            trail.add(serde_json::from_str(line).unwrap());
        }
        trail
    }

    #[test]
    fn a_denial_is_about_its_cell_and_counts_as_often_as_it_says() {
        let decided = Decided::parse(DENIED).unwrap();
        let cell = Cell {
            from: Service::Chat,
            to: Service::Postgres,
            transport: Transport::Tcp6,
        };
        assert_eq!(decided.cell(), Some(cell));
        let trail = trail(&[DENIED, DENIED]);
        assert_eq!(trail.calls.total(Decision::Deny), 6);
        assert_eq!(trail.recorded, 6);
    }

    #[test]
    fn what_a_packet_or_a_receiver_caused_is_recorded_but_no_call() {
        let packet = DENIED.replace("connect6", "cgroup_skb/egress");
        let receiver = DENIED.replace("egress", "ingress");
        let trail = trail(&[&packet, &receiver]);
        assert_eq!((trail.calls.total(Decision::Deny), trail.recorded), (0, 6));
    }

    #[test]
    fn starts_losses_and_anomalies_are_told_apart() {
        let trail = trail(&[
            r#"{"kind":"start","kernel":"fresh","pid":1}"#,
            r#"{"kind":"loss","cause":"sigkill","count":4}"#,
            r#"{"kind":"anomaly","detail":"odd"}"#,
            r#"{"kind":"checkpoint","generation":1,"recorded":6}"#,
        ]);
        assert_eq!(trail.starts, ["fresh"]);
        assert_eq!(trail.lost(), 4);
        assert_eq!(trail.anomalies, ["odd"]);
    }

    #[test]
    fn a_kind_that_the_demo_does_not_know_is_an_error() {
        assert!(serde_json::from_str::<Line>(r#"{"kind":"new"}"#).is_err());
    }
}
