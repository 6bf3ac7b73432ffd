//! The same in audit mode: everything passes, and the records say what would not.

use anyhow::Result;

use crate::demo::Demo;
use crate::demo::round::{Expected, Round};
use crate::demo::services::{Cell, Protocol};
use crate::demo::tally::{Decision, Kind};
use crate::demo::trail::Trail;

pub fn play(demo: &mut Demo<'_>) -> Result<()> {
    demo.act("Audit mode: nothing is denied, everything is recorded");
    demo.agent.stop()?;
    demo.agent.files.write_config("audit")?;
    demo.agent.start()?;
    let round = Round::run(&mut demo.stage, Expected::Everything)?;
    demo.tally.audited(&round);
    demo.check_round(&round, "passes in audit mode");
    // What an agent has seen is in the trail when it has ended.
    demo.agent.stop()?;
    let trail = Trail::read(&demo.agent.files.trail())?;
    check_records(demo, &trail);
    Ok(())
}

/// One `WOULD_DENY` for each cell that the policy does not permit, no other.
fn check_records(demo: &mut Demo<'_>, trail: &Trail) {
    let mut wrong = Vec::new();
    for protocol in Protocol::ALL {
        for cell in Cell::all()
            .filter(|cell| cell.transport.protocol() == protocol && cell.transport.is_ipv4())
        {
            let kind = Kind {
                from: cell.from,
                to: cell.to,
                protocol,
                decision: Decision::WouldDeny,
            };
            // IPv4 and IPv6.
            let expected = if cell.permitted() { 0 } else { 2 };
            let recorded = trail.calls.get(kind);
            if recorded != expected {
                wrong.push(format!("{kind}: {recorded} instead of {expected}"));
            }
        }
    }
    let total = trail.calls.total(Decision::WouldDeny);
    let mut claim = format!(
        "the trail says WOULD_DENY of exactly those that the policy forbids: {total} records"
    );
    if !wrong.is_empty() {
        claim = format!("{claim}; wrong: {}", wrong.join(", "));
    }
    demo.check(wrong.is_empty(), &claim);
}
