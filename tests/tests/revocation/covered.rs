//! A workload behind a covered interface, and a peer that nobody governs: both
//! are told, also where no agent lives to end a socket.

use std::{
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use zt_tests::{
    agent::save,
    netns::Netns,
    patience::scaled,
    stay::{Ended, Staying, now},
    wire::{Wire, contains},
};

use crate::{
    causes::{stamp, wall},
    scene::{FAR, LAST, LATER, SOON},
    stage::{CLIENT, Settings, Stage, wait},
};

const FAR_HOST: u8 = 30;
const PORT: u16 = 9100;
/// Between two datagrams.
const PAUSE: Duration = Duration::from_millis(20);
/// What the client says, over TCP and UDP.
const PIECE: &[u8] = b"ztstays.";

/// The agent runs where the interfaces are, and has covered the client's.
struct Covered {
    stage: Stage,
    far: zt_tests::Workload,
}

impl Covered {
    fn new(policy: &str) -> Self {
        let mut stage = Stage::new(Settings {
            on_the_bridge: true,
            // Not that of the ungoverned one.
            managed: "[p10, p11, p20]",
            ..Settings::default()
        });
        let outside = stage.sandbox.cgroup().child("outside").unwrap();
        let netns: Netns = stage.network.join("far", FAR_HOST).unwrap();
        let far = zt_tests::Workload::new("far", outside, Some(netns));
        write_identities(&stage);
        stage.write_policy(policy);
        stage.agent.start().unwrap();
        let status = stage.status();
        assert_eq!(status["coverage"], "complete", "{status:#}");
        Self { stage, far }
    }

    fn at(&self) -> SocketAddr {
        (self.stage.network.ipv4(FAR_HOST), PORT).into()
    }
}

fn write_identities(stage: &Stage) {
    let (cgroup, ip) = (
        stage.client.cgroup().path().display(),
        stage.network.ipv4(10),
    );
    let netns = stage.client.netns().unwrap().name().to_owned();
    let far = stage.network.ipv4(FAR_HOST);
    let text = format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nworkloads:\n  - spiffe: {CLIENT}\n    cgroup: {cgroup}\n    addresses: [{ip}]\n    networkNamespace: {netns}\nendpoints:\n  - spiffe: {FAR}\n    addresses: [{far}]\n"
    );
    save(&stage.directory().join("identities.yaml"), &text).unwrap();
}

/// The client may reach the ungoverned one. `more` is written into the rule.
fn policy(more: &str) -> String {
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: core}}\nspec:\n  rules:\n    - from: {{spiffe: spiffe://t/other}}\n      to: [{{spiffe: spiffe://t/server, ports: any}}]\n    - from: {{spiffe: {CLIENT}}}\n      to: [{{spiffe: {FAR}, ports: any, protocol: [TCP, UDP]}}]\n{more}"
    )
}

/// Waits until a piece is on the wire.
fn await_a_piece(wire: &Wire) {
    wait(SOON, || {
        let frame = wire.next(scaled(SOON)).unwrap();
        frame.is_some_and(|frame| contains(&frame, PIECE))
    });
}

#[track_caller]
fn told(end: &Staying, since: u64, errors: &[&str]) -> Ended {
    let ended = end.ended(SOON).unwrap();
    let error = ended.errno.as_deref().unwrap_or_default();
    assert!(errors.contains(&error), "{ended:?}");
    println!("{error} after {:.1} ms", (ended.at - since) as f64 / 1e6);
    ended
}

#[test]
fn a_peer_beyond_a_covered_interface_gets_a_reset() {
    let with = policy("");
    let scene = Covered::new(&with);
    let netns = scene.far.netns().unwrap();
    let server = scene.far.hear(scene.at()).unwrap();
    let client = scene.stage.client.stay(scene.at(), None).unwrap();
    // It goes on however often it is refused.
    let _hearing = scene.far.hear_datagrams(scene.at()).unwrap();
    let stream = scene.stage.client.stream(scene.at(), PAUSE).unwrap();
    await_a_piece(&Wire::open(netns, "eth0").unwrap());
    let since = now();
    let without = with.split("    - from: {spiffe: spiffe://t/client}").next();
    scene.stage.write_policy(without.unwrap());
    told(&client, since, &["ECONNABORTED"]);
    let ended = told(&server, since, &["ECONNRESET"]);
    let after = Duration::from_nanos(ended.at - since);
    assert!(after < scaled(LAST), "{after:?}");
    let wire = Wire::open(netns, "eth0").unwrap();
    let start = Instant::now();
    while start.elapsed() < scaled(LATER) {
        let frame = wire.next(scaled(LATER)).unwrap();
        assert!(!frame.is_some_and(|frame| contains(&frame, PIECE)));
    }
    let sent = stream.finish().unwrap();
    assert_eq!(sent.errno.as_deref(), Some("EPERM"), "{sent:?}");
    let cut = scene.stage.metric("zt_connections_cut_total", &[]);
    assert_eq!(cut, 1.0);
}

#[test]
fn without_an_agent_a_lapsed_grant_ends_at_the_peers_next_segment() {
    let end = Duration::from_secs(wall().as_secs()) + scaled(Duration::from_secs(25));
    let granted = policy(&format!("      expires: {}\n", stamp(end)));
    let mut scene = Covered::new(&granted);

    let mut far = zt_tests::actor::Actor::outside(scene.far.netns().unwrap());
    let listener = far.get("socket tcp4");
    far.act(&format!("bind {listener} {}", scene.at())).unwrap();
    far.act(&format!("listen {listener}")).unwrap();
    let mut client = zt_tests::actor::Actor::member(&scene.stage.client);
    let opened = client.get("socket tcp4");
    client
        .act(&format!("connect {opened} {}", scene.at()))
        .unwrap();
    let taken = far.get(&format!("accept {listener}"));
    client.act(&format!("send {opened} hello")).unwrap();
    assert_eq!(far.act(&format!("recv {taken}")), Ok("hello".to_owned()));
    scene.stage.agent.kill().unwrap();
    let left = end.checked_sub(wall()).expect("the grant came too late");
    sleep(left + Duration::from_millis(200));

    let since = now();
    far.act(&format!("send {taken} late")).unwrap();
    let heard = client.act(&format!("recv {opened}"));
    let after = (now() - since) as f64 / 1e6;
    assert_eq!(heard, Err("ECONNRESET".to_owned()));
    let heard = far.act(&format!("recv {taken}"));
    let later = (now() - since) as f64 / 1e6;
    assert_eq!(heard, Err("ECONNRESET".to_owned()));
    println!("the owner is told after {after:.1} ms, the peer after {later:.1} ms");
    scene.stage.agent.start().unwrap();
    // The next agent finds what was decided while there was none.
    wait(SOON, || {
        let records = scene.stage.records();
        let starts = records.iter().filter(|record| record["kind"] == "start");
        let is_told = |record: &serde_json::Value| {
            record["decision"] == "DENY" && record["reason"] == "grant-expired"
        };
        starts.count() == 2 && records.iter().any(is_told)
    });
}
