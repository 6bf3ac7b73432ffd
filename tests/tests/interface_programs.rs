//! Programs on the two sides of an interface, by TCX and by clsact: they take
//! effect, are replaced and not stacked, come first, and strangers are seen.
//!
//! A veth between two namespaces; the programs are on its end in the node's.

#![expect(clippy::unwrap_used, reason = "the helpers are part of the tests")]

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use zt_agent::{
    kernel::{
        KernelError,
        links::Attachment,
        sys,
        tc::{self, AttachedProgram, Mechanism, Side},
    },
    netlink::links,
};
use zt_tests::{
    Sandbox,
    bpffs::Bpffs,
    feature::TCX,
    netns::Netns,
    packet::frame,
    patience::scaled,
    stranger::classifier,
    wire::{BROADCAST, Wire},
};

const DROP: i32 = 2;
const NEXT: i32 = -1;
const SIDES: [Side; 2] = [Side::Ingress, Side::Egress];
/// How long what must not arrive is waited for.
const LINGER: Duration = Duration::from_millis(150);
/// Nobody answers it.
const EXPERIMENT: u16 = 0x88b5;

/// Those that this kernel has. clsact every one has.
fn mechanisms() -> Vec<Mechanism> {
    match tc::probe().unwrap() {
        Mechanism::Tcx => vec![Mechanism::Tcx, Mechanism::Clsact],
        Mechanism::Clsact => vec![Mechanism::Clsact],
    }
}

/// The node's end is `host`, the other `eth0`.
struct Pair {
    node: Netns,
    workload: Netns,
    bpffs: Bpffs,
    _sandbox: Sandbox,
}

impl Pair {
    fn make() -> Self {
        let sandbox = Sandbox::new().unwrap();
        let pair = Self {
            node: sandbox.netns("node").unwrap(),
            workload: sandbox.netns("workload").unwrap(),
            bpffs: sandbox.bpffs().unwrap(),
            _sandbox: sandbox,
        };
        pair.connect();
        pair
    }

    fn connect(&self) {
        let peer = ["peer", "name", "eth0", "netns", self.workload.name()];
        let link = ["link", "add", "host", "type", "veth"];
        self.node.ip(&[&link[..], &peer].concat()).unwrap();
        self.node.ip(&["link", "set", "host", "up"]).unwrap();
        self.workload.ip(&["link", "set", "eth0", "up"]).unwrap();
    }

    fn on_node<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.node.enter(|| Ok(work())).unwrap()
    }

    fn index(&self) -> u32 {
        let links = self.on_node(|| links::list().unwrap());
        let host = links.iter().find(|link| link.name == "host");
        host.unwrap().index
    }

    fn pin(&self, name: &str) -> PathBuf {
        self.bpffs.path().join(name)
    }

    fn hook(&self, mechanism: Mechanism, side: Side) -> Hook<'_> {
        Hook {
            pair: self,
            mechanism,
            side,
            pin: self.pin(&format!("{}_{}", mechanism.name(), side.name())),
        }
    }

    /// Of what passes the side of the node's end: sender and receiver.
    fn wires(&self, side: Side) -> (Wire, Wire) {
        let node = Wire::of(&self.node, "host", EXPERIMENT).unwrap();
        let workload = Wire::of(&self.workload, "eth0", EXPERIMENT).unwrap();
        match side {
            Side::Ingress => (workload, node),
            Side::Egress => (node, workload),
        }
    }
}

/// One side of the node's end.
struct Hook<'a> {
    pair: &'a Pair,
    mechanism: Mechanism,
    side: Side,
    pin: PathBuf,
}

impl Hook<'_> {
    fn attach(&self, program: &OwnedFd) -> Attachment {
        self.try_attach(program).unwrap()
    }

    fn try_attach(&self, program: &OwnedFd) -> Result<Attachment, KernelError> {
        let index = self.pair.index();
        self.pair
            .on_node(|| tc::attach(self.mechanism, program.as_fd(), index, self.side, &self.pin))
    }

    fn detach(&self) {
        let index = self.pair.index();
        self.pair
            .on_node(|| tc::detach(self.mechanism, index, self.side, &self.pin))
            .unwrap();
    }

    fn programs(&self) -> Vec<AttachedProgram> {
        let index = self.pair.index();
        self.pair
            .on_node(|| tc::programs(self.mechanism, index, self.side, &self.pin))
            .unwrap()
    }

    /// The ids in their order, and which are ours.
    fn ids(&self) -> Vec<(Option<u32>, bool)> {
        let programs = self.programs().into_iter();
        programs.map(|program| (program.id, program.ours)).collect()
    }
}

fn send(wire: &Wire, text: &[u8]) {
    let frame = frame(BROADCAST, wire.mac, EXPERIMENT, text);
    wire.send(&frame).unwrap();
}

fn is_dropped(sender: &Wire, receiver: &Wire) {
    // On the way out the sender is told, by "no buffer space".
    let _ = sender.send(&frame(BROADCAST, sender.mac, EXPERIMENT, b"dropped"));
    assert_eq!(receiver.next(scaled(LINGER)).unwrap(), None);
}

fn id(program: &OwnedFd) -> Option<u32> {
    Some(sys::classifier_id(program.as_fd()).unwrap())
}

/// Runs `tc` in the node's namespace.
fn run_tc(pair: &Pair, arguments: &str) {
    let status = Command::new("tc")
        .args(["-n", pair.node.name()])
        .args(arguments.split(' '))
        .status();
    assert!(status.unwrap().success(), "tc {arguments}");
}

#[test]
fn a_program_takes_effect_on_its_side_until_it_is_replaced_or_detached() {
    let pair = Pair::make();
    let (drop, next) = (
        classifier(DROP, "drop").unwrap(),
        classifier(NEXT, "next").unwrap(),
    );
    for mechanism in mechanisms() {
        for side in SIDES {
            let hook = pair.hook(mechanism, side);
            let (sender, receiver) = pair.wires(side);
            let (other_sender, other_receiver) = pair.wires(match side {
                Side::Ingress => Side::Egress,
                Side::Egress => Side::Ingress,
            });
            send(&sender, b"before");
            receiver.await_frame(b"before").unwrap();

            assert_eq!(hook.attach(&drop), Attachment::Attached);
            assert_eq!(hook.ids(), [(id(&drop), true)]);
            is_dropped(&sender, &receiver);
            send(&other_sender, b"the other way");
            other_receiver.await_frame(b"the other way").unwrap();

            assert_eq!(hook.attach(&next), Attachment::Replaced);
            assert_eq!(hook.ids(), [(id(&next), true)]);
            send(&sender, b"once replaced");
            receiver.await_frame(b"once replaced").unwrap();

            assert_eq!(hook.attach(&drop), Attachment::Replaced);
            is_dropped(&sender, &receiver);
            hook.detach();
            assert_eq!(hook.ids(), []);
            assert!(!hook.pin.exists());
            send(&sender, b"once detached");
            receiver.await_frame(b"once detached").unwrap();
            hook.detach();
        }
    }
}

#[test]
fn what_is_probed_is_what_can_be_attached() {
    let pair = Pair::make();
    let program = classifier(NEXT, "next").unwrap();
    let tcx = pair
        .hook(Mechanism::Tcx, Side::Ingress)
        .try_attach(&program);
    let has_tcx = tc::probe().unwrap() == Mechanism::Tcx;
    assert_eq!(tcx.is_ok(), has_tcx, "{tcx:?}");
}

#[test]
fn ours_comes_first_and_a_stranger_that_comes_before_it_later_is_seen() {
    let pair = Pair::make();
    let [ours, earlier, later] =
        ["ours", "earlier", "later"].map(|name| classifier(NEXT, name).unwrap());
    for mechanism in mechanisms() {
        for side in SIDES {
            let hook = pair.hook(mechanism, side);
            let stranger = |name: &str, program: &OwnedFd| match mechanism {
                Mechanism::Tcx => {
                    let pin = pair.pin(&format!("{name}_{}", side.name()));
                    let hook = Hook {
                        pin,
                        ..pair.hook(mechanism, side)
                    };
                    hook.attach(program);
                }
                Mechanism::Clsact => {
                    let pin = pair.pin(&format!("program_{name}_{}", side.name()));
                    sys::pin(program.as_fd(), &pin).unwrap();
                    run_tc(&pair, "qdisc replace dev host clsact");
                    let side = side.name();
                    let pin = pin.display();
                    run_tc(
                        &pair,
                        &format!("filter add dev host {side} prio 1 bpf da pinned {pin}"),
                    );
                }
            };
            stranger("earlier", &earlier);
            hook.attach(&ours);
            let expected = [(id(&ours), true), (id(&earlier), false)];
            assert_eq!(hook.ids(), expected, "{mechanism:?} {side:?}");
            stranger("later", &later);
            let expected = [
                (id(&later), false),
                (id(&ours), true),
                (id(&earlier), false),
            ];
            assert_eq!(hook.ids(), expected, "{mechanism:?} {side:?}");
            // It stays where it is.
            hook.attach(&ours);
            assert_eq!(hook.ids(), expected, "{mechanism:?} {side:?}");
            hook.detach();
            assert_eq!(hook.ids(), [expected[0], expected[2]]);
        }
        pair.node.ip(&["link", "delete", "host"]).unwrap();
        pair.connect();
    }
}

#[test]
fn classifiers_are_seen_beside_tcx_whatever_their_kind() {
    let pair = Pair::make();
    let program = classifier(NEXT, "next").unwrap();
    for mechanism in mechanisms() {
        let hook = pair.hook(mechanism, Side::Ingress);
        run_tc(&pair, "qdisc replace dev host clsact");
        run_tc(
            &pair,
            "filter replace dev host ingress prio 7 protocol all handle 800::1 u32 match u32 0 0 flowid 1:1",
        );
        hook.attach(&program);
        let programs = hook.programs();
        let labels: Vec<_> = programs
            .iter()
            .map(|program| program.label.as_str())
            .collect();
        let own = match mechanism {
            Mechanism::Tcx => "tcx",
            Mechanism::Clsact => "bpf zt-agent",
        };
        assert_eq!(labels[0], own);
        assert!(programs[0].ours);
        assert!(labels[1..].iter().all(|label| *label == "u32") && labels.len() > 1);
        hook.detach();
    }
}

#[test]
fn a_new_interface_of_the_same_name_gets_the_program_anew() {
    let pair = Pair::make();
    let program = classifier(DROP, "drop").unwrap();
    for mechanism in mechanisms() {
        let hook = pair.hook(mechanism, Side::Ingress);
        hook.attach(&program);
        pair.node.ip(&["link", "delete", "host"]).unwrap();
        pair.connect();
        assert_eq!(hook.ids(), []);
        assert_eq!(hook.attach(&program), Attachment::Attached);
        assert_eq!(hook.ids(), [(id(&program), true)]);
        // Also what is left of one that is gone can be detached.
        pair.node.ip(&["link", "delete", "host"]).unwrap();
        let gone = |pin: &Path| tc::detach(mechanism, 4242, Side::Ingress, pin);
        pair.on_node(|| gone(&hook.pin)).unwrap();
        assert!(!hook.pin.exists());
        pair.connect();
    }
}

#[test]
fn ours_that_somebody_took_away_or_replaced_is_missing() {
    let pair = Pair::make();
    let [ours, other] = ["ours", "other"].map(|name| classifier(NEXT, name).unwrap());
    let hook = pair.hook(Mechanism::Clsact, Side::Egress);
    hook.attach(&ours);
    let pin = pair.pin("other");
    sys::pin(other.as_fd(), &pin).unwrap();
    let place = "dev host egress prio 1 handle 0x7a74 bpf da";
    run_tc(
        &pair,
        &format!("filter replace {place} pinned {}", pin.display()),
    );
    assert_eq!(hook.ids(), [(id(&other), false)]);
    assert_eq!(hook.attach(&ours), Attachment::Replaced);
    assert_eq!(hook.ids(), [(id(&ours), true)]);
    run_tc(&pair, "qdisc delete dev host clsact");
    assert_eq!(hook.ids(), []);
    assert_eq!(hook.attach(&ours), Attachment::Attached);
}

#[test]
fn a_link_without_its_pin_or_taken_off_its_interface_is_attached_again_and_once() {
    if TCX.is_missing() {
        return;
    }
    let pair = Pair::make();
    let ours = classifier(NEXT, "ours").unwrap();
    let hook = pair.hook(Mechanism::Tcx, Side::Egress);
    let expected = [(id(&ours), true)];
    hook.attach(&ours);
    // Nothing else holds the link: it goes.
    fs::remove_file(&hook.pin).unwrap();
    hook.attach(&ours);
    assert_eq!(hook.ids(), expected);

    // Somebody else holds the link: it stays.
    let link = sys::get_pinned(&hook.pin).unwrap();
    fs::remove_file(&hook.pin).unwrap();
    assert_eq!(hook.ids(), [(id(&ours), false)]);
    assert_eq!(hook.attach(&ours), Attachment::Replaced);
    assert_eq!(hook.ids(), expected);

    sys::link_detach(link.as_fd()).unwrap();
    assert_eq!(hook.ids(), []);
    assert_eq!(hook.attach(&ours), Attachment::Attached);
    assert_eq!(hook.ids(), expected);
}

#[test]
fn an_ingress_queueing_discipline_in_the_way_is_an_error_that_says_so() {
    let pair = Pair::make();
    let program = classifier(NEXT, "next").unwrap();
    run_tc(&pair, "qdisc add dev host ingress");
    for side in SIDES {
        let hook = pair.hook(Mechanism::Clsact, side);
        let error = hook.try_attach(&program).unwrap_err().to_string();
        assert!(error.contains("must use clsact"), "{error}");
        assert!(!hook.pin.exists());
    }
}
