//! Past every socket: frames that are written by hand inside the services'
//! namespaces. No call of theirs is seen; only the interface can decide.

use std::net::{IpAddr, Ipv4Addr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use zt_tests::wire::Wire;

use crate::demo::Demo;
use crate::demo::forgery::Syn;
use crate::demo::services::{Service, Transport};
use crate::demo::trail::Trail;
use zt_tests::interrupt;

/// Who sends it, and whose address it bears.
type Frame = (Service, Service);

const HONEST: Frame = (Service::Chat, Service::Chat);
const FORGED: Frame = (Service::Chat, Service::Gateway);
const PERMITTED: Frame = (Service::Gateway, Service::Gateway);

/// How long a record may take to be in the trail: equal ones are gathered first.
const RECORDED: Duration = Duration::from_secs(5);

/// Without the agent they arrive.
pub fn before(demo: &mut Demo<'_>) -> Result<()> {
    for frame in [HONEST, FORGED] {
        let arrived = arrives(demo, frame)?;
        demo.check(arrived, &format!("{} arrives too", told(frame)));
    }
    Ok(())
}

pub fn play(demo: &mut Demo<'_>) -> Result<()> {
    demo.act("Beneath the sockets: TCP SYNs to postgres, written into packet sockets");
    for (frame, reason) in [(HONEST, "no-policy"), (FORGED, "spoofed")] {
        let arrived = arrives(demo, frame)?;
        demo.check(!arrived, &format!("{} does not arrive", told(frame)));
        recorded(demo, frame, reason)?;
    }
    let arrived = arrives(demo, PERMITTED)?;
    demo.check(arrived, &format!("{} arrives", told(PERMITTED)));
    Ok(())
}

fn told((sender, claimed): Frame) -> String {
    if sender == claimed {
        format!("a frame of {sender}'s")
    } else {
        format!("a frame of {sender}'s that bears {claimed}'s address")
    }
}

/// Whether postgres' interface sees it. After it one of gateway's is sent, which
/// must arrive: it shows that there was time, and an eye.
fn arrives(demo: &Demo<'_>, frame: Frame) -> Result<bool> {
    interrupt::check()?;
    let postgres = wire(demo, Service::Postgres)?;
    let one = send(demo, frame, &postgres, 1)?;
    let last = send(demo, PERMITTED, &postgres, 2)?;
    postgres.came_before(&last.mark(), &one.mark())
}

fn send(demo: &Demo<'_>, frame: Frame, to: &Wire, sequence: u32) -> Result<Syn> {
    let (sender, claimed) = frame;
    let syn = Syn {
        from: (ipv4(demo, claimed)?, 40_000 + u16::from(sender.host())),
        to: (ipv4(demo, Service::Postgres)?, Service::Postgres.port()),
        sequence,
    };
    let from = wire(demo, sender)?;
    from.send(&syn.frame(to.mac, from.mac))?;
    Ok(syn)
}

fn wire(demo: &Demo<'_>, service: Service) -> Result<Wire> {
    let netns = demo.stage.workload(service).netns();
    Wire::open(netns.context("a service without a namespace")?, "eth0")
}

fn ipv4(demo: &Demo<'_>, service: Service) -> Result<Ipv4Addr> {
    match demo.stage.address(service, Transport::Tcp4).ip() {
        IpAddr::V4(ip) => Ok(ip),
        IpAddr::V6(ip) => bail!("{ip} is no IPv4 address"),
    }
}

/// Waits until the trail tells that a frame to postgres is denied, and shows what
/// it tells. The sender is known by its interface, whatever address it claims.
fn recorded(demo: &mut Demo<'_>, (sender, _): Frame, reason: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        interrupt::check()?;
        let trail = Trail::read(&demo.agent.files.trail())?;
        let denied = trail.frames.iter().find(|decided| {
            let ends = decided.ends();
            decided.decision == "DENY"
                && decided.reason == reason
                && ends == (Some(sender), Some(Service::Postgres))
        });
        if let Some(denied) = denied {
            demo.say(&denied.line());
            demo.check(true, &format!("the trail says so: {reason}"));
            return Ok(());
        }
        if start.elapsed() > RECORDED {
            demo.check(false, &format!("the trail says so: {reason}"));
            return Ok(());
        }
        sleep(Duration::from_millis(50));
    }
}
