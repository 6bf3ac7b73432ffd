use proptest::prelude::*;
use zt_common::codes::Protocol;

use super::{
    super::objects::{NamespaceFacts, Phase, PortFacts, ServiceFacts, SliceFacts, Version},
    *,
};
use crate::model::template;

const HERE: &str = "here";
const THERE: &str = "there";

fn cluster() -> Cluster {
    Cluster::new(Template::parse(template::DEFAULT, "td", "c").unwrap())
}

fn pod(uid: u128, version: u64, node: &str, account: &str, addresses: &[&str]) -> Pod {
    Pod {
        uid: Uid::new(uid),
        version: Version::new(&version.to_string()),
        facts: PodFacts {
            namespace: "ns".into(),
            name: format!("pod-{uid}").into(),
            service_account: account.into(),
            node: (!node.is_empty()).then(|| node.into()),
            host_network: false,
            phase: Phase::Running,
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        },
    }
}

fn node(uid: u128, name: &str, range: &str, addresses: &[&str]) -> Node {
    Node {
        uid: Uid::new(uid),
        version: Version::new("1"),
        facts: NodeFacts {
            name: name.into(),
            ranges: [range.parse().unwrap()].into(),
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        },
    }
}

fn namespace(uid: u128, name: &str, annotation: Option<&str>) -> Namespace {
    Namespace {
        uid: Uid::new(uid),
        version: Version::new("1"),
        facts: NamespaceFacts {
            name: name.into(),
            mode: NamespaceMode::read(annotation),
        },
    }
}

fn service(address: &str, ports: &[PortFacts]) -> Service {
    Service {
        uid: Uid::new(20),
        version: Version::new("1"),
        facts: ServiceFacts {
            namespace: "ns".into(),
            name: "web".into(),
            addresses: [address.parse().unwrap()].into(),
            outside: [].into(),
            ports: ports.into(),
        },
    }
}

fn service_range() -> ServiceRange {
    ServiceRange {
        uid: Uid::new(40),
        version: Version::new("1"),
        facts: ["10.96.0.0/16".parse().unwrap()].into(),
    }
}

/// Two nodes, and these pods.
fn with(pods: Vec<Pod>) -> Cluster {
    let mut cluster = cluster();
    cluster.node(Change::Applied(node(
        1,
        HERE,
        "10.1.0.0/24",
        &["192.0.2.1"],
    )));
    cluster.node(Change::Applied(node(
        2,
        THERE,
        "10.1.1.0/24",
        &["192.0.2.2"],
    )));
    for pod in pods {
        cluster.pod(Change::Applied(pod));
    }
    cluster
}

/// Who is at which address elsewhere, without the nodes.
fn elsewhere(view: &View) -> Vec<(String, String)> {
    let pods = view
        .elsewhere
        .iter()
        .filter_map(|endpoint| match &endpoint.party {
            Party::Workload(id) => Some((endpoint.ip.to_string(), id.to_string())),
            Party::Reserved(_) | Party::Service(_) => None,
        });
    pods.collect()
}

fn at(ip: &str, account: &str) -> (String, String) {
    (ip.to_owned(), format!("spiffe://td/c/ns/{account}"))
}

#[test]
fn pods_of_this_node_are_enrolled_and_those_of_others_have_addresses() {
    let cluster = with(vec![
        pod(10, 1, HERE, "web", &["10.1.0.5"]),
        pod(11, 1, THERE, "db", &["10.1.1.5"]),
        pod(12, 1, "", "later", &[]),
    ]);
    let view = cluster.view(HERE);
    assert_eq!(elsewhere(&view), [at("10.1.1.5", "db")]);
    let [local] = &view.local[..] else {
        panic!("{view:?}")
    };
    assert_eq!(local.name, "ns/pod-10");
    assert_eq!(
        local.identity.as_ref().unwrap().as_str(),
        "spiffe://td/c/ns/web"
    );
    assert_eq!(local.addresses, Some(vec!["10.1.0.5".parse().unwrap()]));
    assert_eq!(
        view.ranges,
        ["10.1.0.0/24", "10.1.1.0/24"].map(|r| r.parse().unwrap())
    );
    assert_eq!(view.complaints, [""; 0]);
}

#[test]
fn the_addresses_of_other_nodes_are_nodes_and_the_own_are_not() {
    let view = with(vec![]).view(HERE);
    let expected = claim(
        "192.0.2.2".parse().unwrap(),
        Party::Reserved(identity::NODES),
    );
    assert_eq!(view.elsewhere, [expected]);
}

#[test]
fn a_node_does_not_get_an_address_in_anothers_pod_range() {
    let mut cluster = with(vec![pod(11, 1, THERE, "db", &["10.1.1.5"])]);
    let thief = node(3, "thief", "10.1.2.0/24", &["10.1.1.5", "10.1.2.1"]);
    cluster.node(Change::Applied(thief));
    let view = cluster.view(HERE);
    assert_eq!(elsewhere(&view), [at("10.1.1.5", "db")]);
    let nodes = view
        .elsewhere
        .iter()
        .filter(|e| matches!(e.party, Party::Reserved(_)));
    let nodes: Vec<String> = nodes.map(|e| e.ip.to_string()).collect();
    assert_eq!(nodes, ["192.0.2.2", "10.1.2.1"]);
    assert!(
        view.complaints[0].contains("thief"),
        "{:?}",
        view.complaints
    );
}

#[test]
fn pods_that_are_over_or_on_the_hosts_network_own_no_address() {
    for node in [HERE, THERE] {
        let ip = if node == HERE { "10.1.0.5" } else { "10.1.1.5" };
        let mut over = pod(10, 1, node, "a", &[ip]);
        over.facts.phase = Phase::Over;
        let mut host = pod(11, 1, node, "b", &[ip]);
        host.facts.host_network = true;
        let view = with(vec![over, host]).view(HERE);
        assert_eq!(elsewhere(&view), []);
        assert!(view.local.iter().all(|pod| pod.addresses == Some(vec![])));
        assert_eq!(view.complaints, [""; 0]);
    }
}

#[test]
fn of_a_young_pod_nobody_said_an_address_and_of_others_that_they_have_none() {
    let of = |pod: Pod| with(vec![pod]).view(HERE).local[0].addresses.clone();
    assert_eq!(of(pod(10, 1, HERE, "a", &[])), None);
    let mut host = pod(10, 1, HERE, "a", &[]);
    host.facts.host_network = true;
    assert_eq!(of(host), Some(vec![]));
    let mut over = pod(10, 1, HERE, "a", &[]);
    over.facts.phase = Phase::Over;
    assert_eq!(of(over), Some(vec![]));
    let view = with(vec![]).view(HERE);
    assert_eq!(view.own_ranges, ["10.1.0.0/24".parse::<IpNet>().unwrap()]);
}

#[test]
fn a_claim_outside_the_nodes_range_is_refused_and_said() {
    for (node, ip, outside) in [
        (THERE, "10.1.0.5", false),
        (THERE, "8.8.8.8", true),
        (HERE, "10.1.1.5", false),
        (HERE, "8.8.8.8", true),
        ("nowhere", "10.1.1.5", false),
    ] {
        let view = with(vec![pod(10, 1, node, "a", &[ip])]).view(HERE);
        // It may be there all the same: it is not the world's.
        let unowned = outside.then(|| ip.parse().unwrap());
        assert_eq!(view.unowned, BTreeSet::from_iter(unowned));
        assert_eq!(elsewhere(&view), []);
        assert!(view.local.iter().all(|pod| pod.addresses == Some(vec![])));
        assert!(view.complaints[0].contains(ip), "{:?}", view.complaints);
    }
}

#[test]
fn a_pod_whose_node_is_not_known_any_more_is_not_the_worlds() {
    let mut cluster = with(vec![pod(10, 1, THERE, "db", &["10.1.1.5"])]);
    assert!(cluster.view(HERE).unowned.is_empty());
    cluster.node(Change::Deleted(Uid::new(2)));
    let view = cluster.view(HERE);
    assert_eq!(view.ranges, ["10.1.0.0/24".parse().unwrap()]);
    assert_eq!(elsewhere(&view), []);
    assert_eq!(view.unowned, BTreeSet::from(["10.1.1.5".parse().unwrap()]));
}

#[test]
fn two_claimants_both_claim_and_the_compiler_makes_a_conflict_of_it() {
    let view = with(vec![
        pod(10, 1, THERE, "a", &["10.1.1.5"]),
        pod(11, 1, THERE, "b", &["10.1.1.5"]),
    ])
    .view(HERE);
    assert_eq!(elsewhere(&view), [at("10.1.1.5", "a"), at("10.1.1.5", "b")]);
}

#[test]
fn a_recycled_address_inherits_nothing_whatever_the_order() {
    let events = [
        Change::Applied(pod(10, 1, THERE, "old", &["10.1.1.5"])),
        Change::Deleted(Uid::new(10)),
        Change::Applied(pod(11, 3, THERE, "new", &["10.1.1.5"])),
    ];
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let mut cluster = with(vec![]);
        for index in order {
            cluster.pod(events[index].clone());
        }
        assert_eq!(
            elsewhere(&cluster.view(HERE)),
            [at("10.1.1.5", "new")],
            "{order:?}"
        );
    }
}

#[test]
fn a_pod_without_a_service_account_has_no_identity_and_no_address() {
    let view = with(vec![
        pod(10, 1, HERE, "", &["10.1.0.5"]),
        pod(11, 1, THERE, "", &["10.1.1.5"]),
    ])
    .view(HERE);
    assert!(view.local[0].identity.is_err());
    assert_eq!(elsewhere(&view), []);
    assert!(view.complaints[0].contains("no service account"));
}

#[test]
fn the_mode_is_the_namespaces_if_it_says_one() {
    for (annotation, mode) in [
        (None, None),
        (Some("audit"), Some(Mode::Audit)),
        (Some("enforce"), Some(Mode::Enforce)),
        (Some("nonsense"), Some(Mode::Enforce)),
    ] {
        let mut cluster = with(vec![pod(10, 1, HERE, "a", &[])]);
        cluster.namespace(Change::Applied(namespace(5, "ns", annotation)));
        cluster.namespace(Change::Applied(namespace(6, "other", Some("audit"))));
        let view = cluster.view(HERE);
        assert_eq!(view.local[0].mode, mode, "{annotation:?}");
        assert_eq!(
            view.complaints.len(),
            usize::from(annotation == Some("nonsense"))
        );
    }
}

#[test]
fn it_is_complete_when_each_kind_was_listed() {
    let mut cluster = cluster();
    macro_rules! list {
        ($($kind:ident),+) => {
            $(cluster.$kind(Change::Listing);
              assert!(!cluster.is_complete());
              cluster.$kind(Change::ListDone);)+
        };
    }
    list!(pod, node, namespace, service, slice, service_range);
    assert!(!cluster.is_complete(), "who governs was not asked");
    cluster.govern(BTreeSet::new());
    assert!(cluster.is_complete());
}

#[test]
fn behind_a_service_are_the_pods_that_own_the_addresses_here_and_elsewhere() {
    let mut cluster = with(vec![
        pod(10, 1, HERE, "web", &["10.1.0.5"]),
        pod(11, 1, THERE, "web", &["10.1.1.5"]),
        // It claims what is not its node's, and so is not behind the Service.
        pod(12, 1, THERE, "thief", &["10.1.0.6"]),
    ]);
    let port = |port| {
        [PortFacts {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port,
        }]
    };
    cluster.service(Change::Applied(service("10.96.0.7", &port(80))));
    let slice = |version, addresses: &[&str]| Slice {
        uid: Uid::new(30),
        version: Version::new(version),
        facts: SliceFacts {
            namespace: "ns".into(),
            name: "web-1".into(),
            service: "web".into(),
            ports: port(8080).into(),
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            is_legible: true,
        },
    };
    cluster.service_range(Change::Applied(service_range()));
    let range = "10.96.0.0/16".parse().unwrap();
    assert!(cluster.view(HERE).ranges.contains(&range));
    let behind = |cluster: &Cluster| {
        let view = cluster.view(HERE);
        let claims = view.services.iter().filter_map(ServicePort::claim);
        let service = claims.filter(|e| e.ip.to_string() == "10.96.0.7");
        let said = service.map(|e| (e.party, e.target, e.cgroup));
        said.collect::<Vec<_>>()
    };
    let web = Party::Workload("spiffe://td/c/ns/web".parse().unwrap());
    let nobody = Party::Reserved(identity::UNKNOWN_PEER);
    assert_eq!(behind(&cluster), [], "the range says that it is nobody's");
    assert!(cluster.slice(Change::Applied(slice("2", &["10.1.0.5", "10.1.1.5"]))));
    assert_eq!(behind(&cluster), [(web.clone(), Some(8080), None)]);
    cluster.slice(Change::Applied(slice("3", &["10.1.0.5", "10.1.0.6"])));
    assert_eq!(behind(&cluster), [(nobody.clone(), None, None)]);
    // Two identities, of which each node governs its own.
    assert!(cluster.pod(Change::Applied(pod(13, 1, THERE, "db", &["10.1.1.7"]))));
    cluster.slice(Change::Applied(slice("3", &["10.1.0.5", "10.1.1.7"])));
    let governed = |cluster: &Cluster| match &behind(cluster)[0].0 {
        Party::Service(all) => all.to_string().matches(" governed").count(),
        other => panic!("{other:?}"),
    };
    assert_eq!(governed(&cluster), 0);
    for (nodes, count) in [(vec![THERE], 1), (vec![HERE, THERE], 2), (vec![], 0)] {
        let nodes = || nodes.iter().map(|node| Arc::from(*node)).collect();
        assert!(cluster.govern(nodes()) && !cluster.govern(nodes()));
        assert_eq!(governed(&cluster), count);
    }
    // Where the range is not known, it does not say it.
    cluster.slice(Change::Applied(slice("4", &[])));
    assert_eq!(behind(&cluster), []);
    cluster.service_range(Change::Deleted(Uid::new(40)));
    assert_eq!(behind(&cluster), [(nobody, None, None)]);
}

#[test]
fn a_node_does_not_get_what_is_a_services_or_this_nodes_or_too_much() {
    let mut cluster = with(Vec::new());
    cluster.service_range(Change::Applied(service_range()));
    cluster.service(Change::Applied(service("10.97.0.7", &[])));
    let own = "192.0.2.99";
    cluster.node(Change::Applied(node(1, HERE, "10.1.0.0/24", &[own])));
    let mut says = |addresses: &[&str]| {
        let other = node(3, "other", "10.1.2.0/24", addresses);
        cluster.node(Change::Applied(other));
        let view = cluster.view(HERE);
        let is = |one: &&Endpoint| addresses.contains(&&*one.ip.to_string());
        (view.elsewhere.iter().filter(is).count(), view.complaints)
    };
    for taken in [own, "10.97.0.7", "10.96.200.1", "10.1.0.9"] {
        let (believed, complaints) = says(&["203.0.113.5", taken]);
        assert_eq!(believed, 1, "{taken}");
        let told = format!("the node other says that it has the address {taken}, ");
        assert!(complaints[0].starts_with(&told), "{complaints:?}");
    }
    let many: Vec<String> = (0..200).map(|last| format!("203.0.113.{last}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (believed, complaints) = says(&many);
    assert_eq!((believed, complaints.len()), (NODE_ADDRESSES, 1));
}

#[test]
fn complaints_are_bounded() {
    let pods = (0..1000).map(|uid| pod(uid, 1, THERE, "a", &["8.8.8.8"]));
    let complaints = with(pods.collect()).view(HERE).complaints;
    assert_eq!(complaints.len(), COMPLAINTS);
    assert_eq!(complaints[COMPLAINTS - 1], "and 937 more are not shown");
}

#[test]
fn names_are_kept_once_and_forgotten_with_their_users() {
    let mut cluster = cluster();
    let first = cluster.name("kube-system");
    assert!(Arc::ptr_eq(&first, &cluster.name("kube-system")));
    for number in 0..1000 {
        cluster.name(&format!("ns-{number}"));
    }
    assert!(cluster.names.len() < 16, "{}", cluster.names.len());
    assert!(Arc::ptr_eq(&first, &cluster.name("kube-system")));
}

#[derive(Clone, Debug)]
enum Told {
    Pod(Change<Pod>),
    Node(Change<Node>),
    Namespace(Change<Namespace>),
}

fn tell(cluster: &mut Cluster, told: Told) {
    match told {
        Told::Pod(change) => cluster.pod(change),
        Told::Node(change) => cluster.node(change),
        Told::Namespace(change) => cluster.namespace(change),
    };
}

/// A pod's life: versions of it, and perhaps its end.
fn life() -> impl Strategy<Value = Vec<Told>> {
    let address = prop_oneof![
        Just("10.1.0.5"),
        Just("10.1.0.6"),
        Just("10.1.1.5"),
        Just("10.1.1.6"),
        Just("8.8.8.8")
    ];
    let node = prop_oneof![Just(HERE), Just(THERE), Just("nowhere")];
    let account = prop_oneof![Just("a"), Just("b"), Just("")];
    let version = (address, any::<bool>(), any::<bool>());
    (
        0..12u128,
        node,
        account,
        prop::collection::vec(version, 1..4),
        any::<bool>(),
    )
        .prop_map(|(uid, node, account, versions, ends)| {
            let mut told: Vec<Told> = (1u64..)
                .zip(versions)
                .map(|(version, (address, over, host))| {
                    let mut one = pod(uid, version, node, account, &[address]);
                    one.facts.phase = if over { Phase::Over } else { Phase::Running };
                    one.facts.host_network = host;
                    Told::Pod(Change::Applied(one))
                })
                .collect();
            if ends {
                told.push(Told::Pod(Change::Deleted(Uid::new(uid))));
            }
            told
        })
}

fn world() -> impl Strategy<Value = Vec<Told>> {
    let mode = prop_oneof![Just(None), Just(Some("audit")), Just(Some("x"))];
    (prop::collection::vec(life(), 0..8), mode).prop_map(|(lives, mode)| {
        // A UID has one life.
        let mut seen = HashSet::new();
        let uid = |life: &Vec<Told>| match &life[0] {
            Told::Pod(Change::Applied(pod)) => pod.uid,
            _ => unreachable!("a life begins"),
        };
        let lives = lives
            .into_iter()
            .filter(|life| seen.insert(uid(life)))
            .flatten();
        let mut told: Vec<Told> = lives.collect();
        told.push(Told::Node(Change::Applied(node(
            100,
            HERE,
            "10.1.0.0/24",
            &["192.0.2.1"],
        ))));
        told.push(Told::Node(Change::Applied(node(
            101,
            THERE,
            "10.1.1.0/24",
            &["192.0.2.2"],
        ))));
        told.push(Told::Namespace(Change::Applied(namespace(102, "ns", mode))));
        told
    })
}

proptest! {
    #[test]
    fn the_same_objects_give_the_same_view_whatever_the_order_and_however_often(
        (told, again) in world().prop_flat_map(|told| {
            let twice: Vec<Told> = told.iter().chain(&told).cloned().collect();
            (Just(told), Just(twice).prop_shuffle())
        }),
    ) {
        let (mut in_order, mut shuffled) = (cluster(), cluster());
        told.into_iter().for_each(|one| tell(&mut in_order, one));
        again.into_iter().for_each(|one| tell(&mut shuffled, one));
        for node in [HERE, THERE, "third"] {
            prop_assert_eq!(in_order.view(node), shuffled.view(node));
        }
    }

    #[test]
    fn a_list_of_what_is_there_gives_the_view_of_the_whole_history(
        (told, stale) in (world(), world()),
    ) {
        let mut lived = cluster();
        told.iter().cloned().for_each(|one| tell(&mut lived, one));
        // Somebody who saw something else before, and then only the list.
        let mut relisted = cluster();
        for one in stale {
            let gone = matches!(one, Told::Pod(Change::Deleted(_)));
            if let Told::Pod(Change::Applied(mut pod)) = one {
                pod.uid = Uid::new(1000 + u128::from(pod.facts.phase == Phase::Over));
                relisted.pod(Change::Applied(pod));
            } else if !gone {
                tell(&mut relisted, one);
            }
        }
        relisted.pod(Change::Listing);
        lived.pods.iter().for_each(|pod| _ = relisted.pod(Change::Listed(pod.clone())));
        relisted.pod(Change::ListDone);
        relisted.namespace(Change::Listing);
        lived.namespaces.iter().for_each(|one| _ = relisted.namespace(Change::Listed(one.clone())));
        relisted.namespace(Change::ListDone);
        // The same version may say something else only in this test.
        prop_assert_eq!(lived.view(HERE), relisted.view(HERE));
    }

    #[test]
    fn nobody_is_believed_to_be_outside_the_ranges_of_their_node(told in world()) {
        let mut cluster = cluster();
        told.into_iter().for_each(|one| tell(&mut cluster, one));
        let view = cluster.view(HERE);
        let (here, there): (IpNet, IpNet) =
            ("10.1.0.0/24".parse().unwrap(), "10.1.1.0/24".parse().unwrap());
        for (ip, _) in elsewhere(&view) {
            prop_assert!(there.contains(&ip.parse::<IpAddr>().unwrap()));
        }
        for pod in &view.local {
            let said = pod.addresses.iter().flatten();
            prop_assert!(said.clone().all(|ip| here.contains(ip)));
            let has_none = pod.host_network || pod.phase == Phase::Over;
            prop_assert!(!has_none || pod.addresses == Some(vec![]));
        }
    }
}

#[test]
fn ten_thousand_pods_are_viewed_in_moments() {
    let mut cluster = cluster();
    for number in 0..1000u128 {
        let (high, low) = (number / 256, number % 256);
        let (range, address) = (
            format!("10.{high}.{low}.0/24"),
            format!("192.168.{high}.{low}"),
        );
        let name = format!("node-{number}");
        cluster.node(Change::Applied(node(number, &name, &range, &[&address])));
        for pods in 0..10 {
            let uid = 1_000_000 + number * 10 + pods;
            let ip = format!("10.{high}.{low}.{}", pods + 2);
            let one = pod(uid, 1, &name, &format!("account-{}", uid % 50), &[&ip]);
            cluster.pod(Change::Applied(one));
        }
    }
    let start = std::time::Instant::now();
    let view = cluster.view("node-7");
    eprintln!("a view of 10,000 pods takes {:?}", start.elapsed());
    assert_eq!((view.local.len(), view.elsewhere.len()), (10, 9990 + 999));
    assert!(start.elapsed().as_secs() < 10, "it grows with the square");
}
