//! Connections between governed workloads and ones that are not, on both ends.

use std::{net::SocketAddr, thread::sleep, time::Duration};

use zt_tests::{
    Workload,
    agent::save,
    patience::scaled,
    stay::{Ended, Staying},
};

use crate::stage::{CLIENT, OTHER, SERVER, Settings, Stage};

/// Nobody's on this node: neither under the managed root nor governed.
pub const FAR: &str = "spiffe://t/far";
const FAR_HOST: u8 = 30;
const HEARD: u16 = 9000;
const BUSY: Duration = Duration::from_millis(2);
/// An owner must be told within this.
pub const SOON: Duration = Duration::from_secs(2);
/// Nothing may arrive later than this after the cause. Between the two the agent
/// works, beside all that is still sent: a slow machine is slow twice.
pub const LAST: Duration = Duration::from_secs(1);
/// What is untouched must stay so for this long.
pub const LATER: Duration = Duration::from_millis(300);

/// One connection, seen from both of its ends.
pub struct Pair {
    name: &'static str,
    /// Whether the client's end, and the server's, is governed.
    governed: [bool; 2],
    client: Staying,
    server: Staying,
}

/// What is taken away below, and what stays.
pub struct Scene {
    pub stage: Stage,
    far: Workload,
    foreign: Workload,
    taken: Vec<Pair>,
    kept: Vec<Pair>,
    stream: Option<(Staying, Staying)>,
    next_port: u16,
}

impl Scene {
    /// The agent runs with `policy`, and nothing is connected yet.
    pub fn new(settings: Settings, policy: &str) -> Self {
        let mut stage = Stage::new(settings);
        let sandbox = &stage.sandbox;
        let outside = sandbox.cgroup().child("outside").unwrap();
        let netns = stage.network.join("far", FAR_HOST).unwrap();
        let far = Workload::new("far", outside.clone(), Some(netns));
        // In the client's own namespace, with its address, and not governed.
        let netns = stage.client.netns().cloned();
        let foreign = Workload::sharing("foreign", outside, netns);
        write_identities(&stage);
        stage.write_policy(policy);
        stage.agent.start().unwrap();
        Self {
            stage,
            far,
            foreign,
            taken: Vec::new(),
            kept: Vec::new(),
            stream: None,
            next_port: HEARD,
        }
    }

    /// Opens everything: of each kind an idle and a busy connection.
    pub fn open(&mut self) {
        for pause in [None, Some(BUSY)] {
            let (stage, far, foreign) = (&self.stage, &self.far, &self.foreign);
            let (client, server, other) = (&stage.client, &stage.server, &stage.other);
            let kinds = [
                ("both ends governed", client, server, [true, true], true),
                ("source governed", client, far, [true, false], true),
                ("destination governed", far, server, [false, true], true),
                ("allowed", other, server, [true, true], false),
                ("foreign", foreign, far, [false, false], false),
            ];
            let mut opened = Vec::new();
            for (name, from, to, governed, is_taken) in kinds {
                self.next_port += 1;
                let to_ip = if to.name() == "far" { FAR_HOST } else { 20 };
                let at = SocketAddr::from((stage.network.ipv4(to_ip), self.next_port));
                let server = to.hear(at).unwrap();
                let client = from.stay(at, pause).unwrap();
                let pair = Pair {
                    name,
                    governed,
                    client,
                    server,
                };
                opened.push((pair, is_taken));
            }
            for (pair, is_taken) in opened {
                if is_taken {
                    self.taken.push(pair);
                } else {
                    self.kept.push(pair);
                }
            }
        }
        let at = SocketAddr::from((self.stage.network.ipv4(20), HEARD));
        let hearing = self.stage.server.hear_datagrams(at).unwrap();
        let sending = self.stage.client.stream(at, BUSY).unwrap();
        self.stream = Some((sending, hearing));
        // The busy ones are busy.
        sleep(Duration::from_millis(100));
    }

    /// What was taken away at `since` has ended, everything else has not.
    /// Prints how long it took. Gives the number of ends that were cut.
    pub fn was_cut(self, cause: &str, since: u64) -> (Stage, usize) {
        let taken = self.taken.iter();
        let ends = taken.map(|pair| pair.was_cut(cause, since, &self.stage));
        let ends = ends.sum();
        let (sending, hearing) = self.stream.unwrap();
        sleep(LATER);
        for pair in self.taken {
            pair.heard_nothing_more(cause, since);
        }
        let heard = hearing.finish().unwrap();
        let sent = sending.finish().unwrap();
        assert!(heard.received > 10, "{heard:?}");
        report(cause, "busy UDP", &heard, since);
        assert_eq!(sent.errno.as_deref(), Some("EPERM"), "{sent:?}");
        for pair in self.kept {
            pair.goes_on();
        }
        (self.stage, ends)
    }

    /// Nothing has ended.
    pub fn goes_on(self) -> Stage {
        sleep(LATER);
        for pair in self.taken.into_iter().chain(self.kept) {
            pair.goes_on();
        }
        self.stage
    }
}

impl Pair {
    /// Every governed end was told. Gives how many there are.
    fn was_cut(&self, cause: &str, since: u64, stage: &Stage) -> usize {
        let name = self.name;
        let mut count = 0;
        for (end, staying) in [(0, &self.client), (1, &self.server)] {
            if !self.governed[end] {
                continue;
            }
            let side = ["source", "destination"][end];
            let ended = staying.ended(SOON).unwrap_or_else(|error| {
                let log = stage.agent.log();
                panic!("{cause}, {name}: the {side} is not told: {error:#}\n{log}")
            });
            let told = ended.errno.as_deref();
            assert!(
                matches!(told, Some("ECONNABORTED" | "ECONNRESET")),
                "{cause}, {name}: {side}: {ended:?}"
            );
            report(cause, &format!("{name}: {side}"), &ended, since);
            count += 1;
        }
        count
    }

    /// An end that nobody governs gets a reset, and nothing else arrives there.
    fn heard_nothing_more(self, cause: &str, since: u64) {
        for (end, staying) in [(0, self.client), (1, self.server)] {
            if !self.governed[end] {
                let side = ["source", "destination"][end];
                let what = format!("{}: ungoverned {side}", self.name);
                let ended = staying.ended(SOON).expect(&what);
                assert_eq!(ended.errno.as_deref(), Some("ECONNRESET"), "{what}");
                report(cause, &what, &ended, since);
            }
        }
    }

    fn goes_on(self) {
        let ended = self.server.all_ended().unwrap();
        assert_eq!(ended, [], "{}: the destination", self.name);
        let client = self.client.finish().unwrap();
        assert_eq!(client.errno, None, "{}: the source", self.name);
    }
}

/// Prints times, and asserts that nothing arrived for long after `since`.
fn report(cause: &str, what: &str, ended: &Ended, since: u64) {
    let ms = |at: u64| (i128::from(at) - i128::from(since)) as f64 / 1e6;
    let told = if ended.at == 0 {
        String::new()
    } else {
        format!(
            ", told after {:.1} ms ({})",
            ms(ended.at),
            ended.errno.as_deref().unwrap_or("-")
        )
    };
    let last = match ended.last {
        0 => "nothing arrived".to_owned(),
        last if last < since => "nothing arrived after".to_owned(),
        last => format!("last arrival after {:.1} ms", ms(last)),
    };
    println!("{cause}: {what}: {last}{told}");
    let limit = scaled(scaled(LAST)).as_secs_f64() * 1000.0;
    assert!(ms(ended.last) < limit, "{cause}: {what}: {last}");
}

fn write_identities(stage: &Stage) {
    let mut text = "apiVersion: zt.hanzo.ai/v1\nkind: NodeIdentities\nworkloads:\n".to_owned();
    for (workload, spiffe, host) in [
        (&stage.client, CLIENT, 10),
        (&stage.other, OTHER, 11),
        (&stage.server, SERVER, 20),
    ] {
        let (cgroup, address) = (workload.cgroup().path().display(), stage.network.ipv4(host));
        let netns = workload.netns().unwrap().name().to_owned();
        text += &format!(
            "  - spiffe: {spiffe}\n    cgroup: {cgroup}\n    addresses: [{address}]\n    networkNamespace: {netns}\n"
        );
    }
    let far = stage.network.ipv4(FAR_HOST);
    text += &format!("endpoints:\n  - spiffe: {FAR}\n    addresses: [{far}]\n");
    save(&stage.directory().join("identities.yaml"), &text).unwrap();
}
