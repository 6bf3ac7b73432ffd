//! The agent is killed and started again; the kernel goes on by itself.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use zt_tests::report::Summary;
use zt_tests::workload::Looping;

use super::{LIMIT, cell};
use crate::demo::Demo;
use crate::demo::round::{Expected, Round};
use crate::demo::services::{Cell, Service, Transport};
use crate::demo::trail::Trail;

/// How long the loops run: through the kill, the time without an agent, and
/// the start.
const RUN: Duration = Duration::from_secs(7);
const PAUSE: Duration = Duration::from_millis(2);

pub fn play(demo: &mut Demo<'_>) -> Result<()> {
    demo.act("kill -9 of the agent, and a new start, under running connect loops");
    let permitted = cell(Service::Gateway, Service::Postgres, Transport::Tcp4);
    let forbidden = cell(Service::Chat, Service::Postgres, Transport::Tcp6);
    let good = connecting(demo, permitted)?;
    let bad = connecting(demo, forbidden)?;
    let started = std::time::Instant::now();
    sleep(Duration::from_millis(800));
    demo.agent.kill()?;
    demo.say("killed; nobody is there for a second");
    sleep(Duration::from_secs(1));
    let took = demo.agent.start()?;
    demo.say(&format!(
        "started again; ready after {} ms",
        took.as_millis()
    ));
    let in_time = started.elapsed() + Duration::from_millis(300) < RUN;
    demo.check(in_time, "the loops ran through all of it");
    let (good, bad) = (good.summary()?, bad.summary()?);
    demo.tally.looped(permitted, &good);
    demo.tally.looped(forbidden, &bad);
    check_permitted(demo, permitted, &good);
    check_forbidden(demo, forbidden, &bad);
    let trail = Trail::read(&demo.agent.files.trail())?;
    let adopted = trail.starts == ["fresh", "adopted"];
    demo.check(
        adopted,
        &format!("the new agent adopted what was pinned: {:?}", trail.starts),
    );
    let round = Round::run(&mut demo.stage, Expected::Policy)?;
    demo.tally.enforced(&round);
    demo.check_round(&round, "and the matrix is the same");
    Ok(())
}

fn connecting(demo: &Demo<'_>, cell: Cell) -> Result<Looping> {
    let to = demo.stage.address(cell.to, cell.transport);
    demo.stage
        .workload(cell.from)
        .tcp_loop(to, RUN, PAUSE, LIMIT)
}

fn check_permitted(demo: &mut Demo<'_>, cell: Cell, summary: &Summary) {
    let (ok, failed) = (summary.ok, &summary.failed);
    let claim = format!("{cell}: {ok} connections, failures: {failed:?}");
    demo.check(ok > 0 && failed.is_empty(), &claim);
}

fn check_forbidden(demo: &mut Demo<'_>, cell: Cell, summary: &Summary) {
    let (ok, failed) = (summary.ok, &summary.failed);
    let refused = failed.len() == 1 && failed.contains_key("EPERM");
    let claim = format!("{cell}: {ok} connections, failures: {failed:?}");
    demo.check(ok == 0 && refused, &claim);
}
