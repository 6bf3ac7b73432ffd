//! Services: a real kube-proxy leads what is sent to them elsewhere, and who may
//! reach them depends on who is there.

use std::{
    cell::RefCell,
    fs,
    net::{IpAddr, SocketAddr},
};

use serde_json::{Value, json};
use zt_agent::source::kubernetes::objects::MODE_ANNOTATION;
use zt_tests::{Workload, agent::save, cluster, report::Attempt, workload::Server};

use crate::{
    proxy::{self, Proxy},
    stage::{Driver, PATIENT, PORT, Pod, SLOW, Stage, wait},
};

/// Of the Services; their backends serve at [`PORT`].
const FRONT: u16 = 80;

impl Stage<'_> {
    /// Pods with these accounts, whose packets to Services pass a proxy.
    fn routed<const N: usize>(&self, accounts: [&str; N]) -> [Pod; N] {
        let mut host = 9;
        accounts.map(|account| {
            host += 1;
            let pod = self.pod(account, account, Driver::Systemd, host);
            proxy::route(self, &pod);
            pod
        })
    }

    fn account(&self, name: &str) {
        self.create(&json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": self.namespace},
        }));
    }

    /// Makes a Service; gives its address.
    fn service(&self, name: &str) -> IpAddr {
        self.create(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"ports": [{"name": "main", "port": FRONT, "targetPort": PORT}]},
        }));
        let address = self.kubectl(&["get", "service", name, "-o=jsonpath={.spec.clusterIP}"]);
        address.parse().unwrap()
    }

    /// Makes a Service to which proxies lead what is sent to these addresses, too.
    fn service_at(&self, name: &str, external: &[IpAddr]) {
        self.create(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "ports": [{"name": "main", "port": FRONT, "targetPort": PORT}],
                "externalIPs": external,
            },
        }));
    }

    /// Says who is behind a Service.
    fn slice(&self, service: &str, addresses: &[IpAddr]) {
        let backends: Vec<Value> = (addresses.iter())
            .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": service, "namespace": self.namespace,
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4",
            "ports": [{"name": "main", "port": PORT, "protocol": "TCP"}],
            "endpoints": backends,
        });
        let applied = self
            .cluster
            .kubectl_with(&["apply", "-f", "-"], &slice.to_string());
        applied.unwrap().ok().unwrap();
    }
}

impl Stage<'_> {
    /// A policy of a file: this account may reach that one where it serves.
    fn allow(&self, from: &str, to: &str) {
        let id = |account| format!("spiffe://t/c/{}/{account}", self.namespace);
        let policy = json!({
            "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy",
            "metadata": {"name": format!("{from}-{to}")},
            "spec": {"rules": [{
                "from": {"spiffe": id(from)}, "to": [{"spiffe": id(to), "ports": [PORT]}],
            }]},
        });
        let path = format!("policies/{from}-{to}.yaml");
        save(&self.sandbox.directory().join(path), &policy.to_string()).unwrap();
    }

    /// A policy of a file: this account may reach these addresses.
    fn allow_out(&self, from: &str, to: &str) {
        let id = format!("spiffe://t/c/{}/{from}", self.namespace);
        let policy = json!({
            "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy",
            "metadata": {"name": format!("{from}-out")},
            "spec": {"rules": [{
                "from": {"spiffe": id}, "to": [{"cidr": to, "ports": [FRONT]}],
            }]},
        });
        let path = format!("policies/{from}-out.yaml");
        save(&self.sandbox.directory().join(path), &policy.to_string()).unwrap();
    }

    #[track_caller]
    fn tell(&self, arguments: &[&str]) -> String {
        let answer = self.agent.ask(arguments).unwrap();
        assert!(answer.is_success(), "{}", answer.summary());
        answer.output
    }
}

/// What a server heard.
struct Ear {
    server: RefCell<Server>,
    /// Lines that do not count any more.
    before: usize,
}

impl Ear {
    fn new(server: Server) -> Self {
        Self {
            server: RefCell::new(server),
            before: 0,
        }
    }

    fn forget(&mut self) {
        self.before = self.server.get_mut().received().unwrap().len();
    }

    fn heard(&self, client: &Pod) -> bool {
        let from = format!("{}:", client.address);
        let lines = self.server.borrow_mut().received().unwrap();
        lines[self.before..].iter().any(|line| line.contains(&from))
    }
}

fn ask(from: &Workload, service: IpAddr) -> Attempt {
    from.tcp(SocketAddr::new(service, FRONT), PATIENT).unwrap()
}

#[track_caller]
fn until(from: &Workload, service: IpAddr, answered: bool) {
    wait(SLOW, || ask(from, service).replied() == answered);
}

#[test]
fn who_may_reach_a_service_depends_on_who_is_behind_it() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 31);
    let _proxy = Proxy::start(&stage);
    let [server, client, other] = stage.routed(["server", "client", "other"]);
    let mut serving = stage.serve(&server);
    let behind = IpAddr::from(server.address);
    let web = stage.service("web");
    stage.slice("web", &[behind]);
    // kube-proxy works, and hides nobody.
    for pod in [&client, &other] {
        until(&pod.workload, web, true);
    }
    let from_other = format!("{}:", other.address);
    let heard = serving.received().unwrap();
    assert!(
        heard.iter().any(|line| line.contains(&from_other)),
        "{heard:?}"
    );

    stage.agent.start().unwrap();
    until(&client.workload, web, true);
    let before = serving.received().unwrap().len();
    for _ in 0..3 {
        let denied = ask(&other.workload, web);
        assert_eq!(denied.errno.as_deref(), Some("EPERM"), "{denied:?}");
        assert!(ask(&client.workload, web).replied());
    }
    let heard = serving.received().unwrap().split_off(before);
    let accepted = heard.iter().filter(|line| line.starts_with("accept"));
    assert_eq!(accepted.count(), 3, "{heard:?}");
    assert!(
        !heard.iter().any(|line| line.contains(&from_other)),
        "{heard:?}"
    );

    // Whoever may make a Service of their own gets nowhere by it.
    let mine = stage.service("mine");
    stage.slice("mine", &[behind]);
    until(&client.workload, mine, true);
    assert_eq!(ask(&other.workload, mine).errno.as_deref(), Some("EPERM"));

    // Nobody is there any more, and then somebody is again.
    stage.slice("web", &[]);
    until(&client.workload, web, false);
    assert_eq!(ask(&client.workload, web).errno.as_deref(), Some("EPERM"));
    stage.slice("web", &[behind]);
    until(&client.workload, web, true);

    // A Service that has gone is nobody, and not the world.
    stage.kubectl(&["delete", "service", "web"]);
    wait(SLOW, || {
        ask(&client.workload, web).errno.as_deref() == Some("EPERM")
    });
    wait(SLOW, || {
        let records = stage.records();
        let last = records.iter().rfind(|record| record["reason"].is_string());
        last.is_some_and(|record| record["reason"] == "unknown-peer")
    });
}

/// Two versions of one Service, with service accounts of their own.
#[test]
fn a_service_with_two_identities_behind_it_is_for_whoever_may_reach_both() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 74);
    stage.without_leases();
    let _proxy = Proxy::start(&stage);
    stage.account("green");
    let [blue, green, client, other] = stage.routed(["server", "green", "client", "other"]);
    let [mut at_blue, mut at_green] = [&blue, &green].map(|pod| Ear::new(stage.serve(pod)));
    let (blue_ip, green_ip) = (IpAddr::from(blue.address), IpAddr::from(green.address));
    let web = stage.service("web");
    stage.slice("web", &[blue_ip, green_ip]);
    let mine = stage.service("mine");
    stage.slice("mine", &[blue_ip]);
    // The file lets the client reach blue.
    stage.allow("client", "green");
    stage.allow("other", "server");
    // kube-proxy leads everybody to both.
    for pod in [&client, &other] {
        wait(SLOW, || {
            ask(&pod.workload, web);
            at_blue.heard(pod) && at_green.heard(pod)
        });
    }
    stage.agent.start().unwrap();
    until(&client.workload, web, true);
    wait(SLOW, || {
        ask(&other.workload, web).errno.as_deref() == Some("EPERM")
    });
    for ear in [&mut at_blue, &mut at_green] {
        ear.forget();
    }
    wait(SLOW, || {
        assert!(ask(&client.workload, web).replied());
        at_blue.heard(&client) && at_green.heard(&client)
    });
    // Who may reach one of them reaches neither, and is told of which.
    for _ in 0..5 {
        let denied = ask(&other.workload, web);
        assert_eq!(denied.errno.as_deref(), Some("EPERM"), "{denied:?}");
    }
    assert!(!at_blue.heard(&other) && !at_green.heard(&other));
    let id = |account: &str| format!("spiffe://t/c/{}/{account}", stage.namespace);
    let name = format!(
        "service {}/web ({} at {PORT}, {} at {PORT})",
        stage.namespace,
        id("green"),
        id("server")
    );
    wait(SLOW, || {
        stage.records().iter().any(|record| {
            record["reason"] == "no-policy"
                && record["source"]["spiffe_id"] == id("other").as_str()
                && record["destination"]["identity"] == name.as_str()
        })
    });
    let question = |from: &str| {
        let (from, to) = (id(from), web.to_string());
        let answer = stage.agent.ask(&[
            "policy", "explain", "--full", "--from", &from, "--to", &to, "--port", "80",
        ]);
        let answer = answer.unwrap();
        eprintln!("{}", answer.output);
        (answer.code, answer.output)
    };
    let (code, text) = question("other");
    let why = format!("{} at {PORT}: no rule allows it", id("green"));
    assert!(code == 1 && text.contains(&why), "{text}");
    assert_eq!(question("client").0, 0);
    let identities = stage.tell(&["identities"]);
    assert!(identities.contains(&name), "{identities}");

    // A tenant who points a Service of his own at somebody else opens nothing.
    until(&other.workload, mine, true);
    stage.slice("mine", &[blue_ip, green_ip]);
    until(&other.workload, mine, false);
    assert_eq!(ask(&other.workload, mine).errno.as_deref(), Some("EPERM"));
    assert!(!at_green.heard(&other));
    until(&client.workload, mine, true);

    // Who is cut off cuts the Service off, also what is open.
    let to = SocketAddr::new(web, FRONT);
    let mut held = client.workload.tcp_held(to, PATIENT).unwrap();
    assert!(held.first.replied() && held.again().unwrap().replied());
    stage.tell(&["quarantine", "add", &id("green")]);
    assert!(!held.again().is_ok_and(|attempt| attempt.replied()));
    let denied = ask(&client.workload, web);
    assert_eq!(denied.errno.as_deref(), Some("EPERM"), "{denied:?}");
    let (_, text) = question("client");
    let why = format!("{} at {PORT}: it is quarantined", id("green"));
    assert!(text.contains(&why), "{text}");
    // Blue alone can still be reached.
    stage.passes(&client.workload, &blue);
    stage.is_denied(&client.workload, &green);
    stage.tell(&["quarantine", "remove", &id("green")]);
    until(&client.workload, web, true);

    // A grant that goes.
    fs::remove_file(stage.sandbox.directory().join("policies/client-green.yaml")).unwrap();
    until(&client.workload, web, false);
    stage.passes(&client.workload, &blue);
}

/// The same where this node says that it enforces everything: there are blue and green.
#[test]
fn who_may_reach_one_of_two_gets_to_that_one_while_their_node_says_that_it_enforces() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 37);
    let _proxy = Proxy::start(&stage);
    stage.account("green");
    let [blue, green, other] = stage.routed(["server", "green", "other"]);
    let [mut at_blue, mut at_green] = [&blue, &green].map(|pod| Ear::new(stage.serve(pod)));
    let web = stage.service("web");
    stage.slice("web", &[blue.address.into(), green.address.into()]);
    stage.allow("other", "server");
    wait(SLOW, || {
        ask(&other.workload, web);
        at_blue.heard(&other) && at_green.heard(&other)
    });
    stage.agent.start().unwrap();
    // Who was not governed before is not for as long as a proxy may be late.
    wait(SLOW * 4, || ask(&other.workload, web).replied());
    let holder = || {
        let path = "-o=jsonpath={.spec.holderIdentity}";
        let lease = ["get", "lease", &stage.node, "--namespace=default", path];
        cluster.kubectl(&lease).unwrap().ok().unwrap()
    };
    assert_eq!(holder(), stage.node);
    for ear in [&mut at_blue, &mut at_green] {
        ear.forget();
    }
    let id = |account: &str| format!("spiffe://t/c/{}/{account}", stage.namespace);
    // Some are led to green, whose end refuses them.
    let refused = RefCell::new(0);
    wait(SLOW, || {
        let asked = ask(&other.workload, web);
        assert_ne!(asked.errno.as_deref(), Some("EPERM"), "{asked:?}");
        *refused.borrow_mut() += usize::from(!asked.replied());
        at_blue.heard(&other) && *refused.borrow() > 0
    });
    assert!(!at_green.heard(&other));
    wait(SLOW, || {
        stage.records().iter().any(|record| {
            record["direction"] == "ingress"
                && record["decision"] == "DENY"
                && record["source"]["spiffe_id"] == id("other").as_str()
                && record["destination"]["spiffe_id"] == id("green").as_str()
        })
    });
    let asked = stage.tell(&[
        "policy",
        "explain",
        "--full",
        "--from",
        &id("other"),
        "--to",
        &web.to_string(),
        "--port",
        "80",
    ]);
    let left = format!(
        "{} at {PORT}: no rule allows it, and its node refuses it there",
        id("green")
    );
    assert!(asked.contains(&left), "{asked}");

    // Somebody here is in audit mode: the source decides again, and at once.
    let audited = format!("{}-audited", stage.namespace);
    cluster.create_namespace(&audited).unwrap();
    let mode = format!("{MODE_ANNOTATION}=audit");
    let annotated = cluster.kubectl(&["annotate", "namespace", &audited, &mode]);
    annotated.unwrap().ok().unwrap();
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "loose", "namespace": audited},
    });
    stage.create(&account);
    let loose = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "loose", "namespace": audited},
        "spec": {
            "serviceAccountName": "loose", "nodeName": stage.node,
            "containers": [{"name": "main", "image": "none"}],
        },
    });
    stage.create(&loose);
    let path = "-o=jsonpath={.metadata.uid}";
    let uid = ["get", "pod", "loose", "--namespace", &audited, path];
    let uid = cluster.kubectl(&uid).unwrap().ok().unwrap();
    let loose = stage.cgroup(&uid, Driver::Systemd);
    wait(SLOW, || holder().is_empty());
    wait(SLOW, || {
        ask(&other.workload, web).errno.as_deref() == Some("EPERM")
    });
    for _ in 0..5 {
        let denied = ask(&other.workload, web);
        assert_eq!(denied.errno.as_deref(), Some("EPERM"), "{denied:?}");
    }
    assert!(!at_green.heard(&other));
    loose.remove().unwrap();
    let gone = [
        "delete",
        "pod",
        "loose",
        "--namespace",
        &audited,
        "--force",
        "--grace-period=0",
    ];
    cluster.kubectl(&gone).unwrap().ok().unwrap();
    wait(SLOW, || holder() == stage.node);
}

/// Whoever may reach an address outside must not be led by it to whom he may not
/// reach, and who may reach a backend not to whom that address is.
#[test]
fn an_external_address_of_a_service_is_for_nobody() {
    let Some(cluster) = cluster::shared() else {
        return;
    };
    let mut stage = Stage::new(cluster, 75);
    let _proxy = Proxy::start(&stage);
    let [server, client, other] = stage.routed(["server", "client", "other"]);
    let _serving = stage.serve(&server);
    let [external, elsewhere]: [IpAddr; 2] =
        ["198.51.100.9", "198.51.100.10"].map(|ip| ip.parse().unwrap());
    stage.service_at("lure", &[external]);
    stage.slice("lure", &[server.address.into()]);
    stage.allow_out("other", "198.51.100.0/24");
    // What is sent to an external address the node masquerades: the server's end
    // lets everybody pass.
    stage.write_policy("masqueraded", "{reserved: masqueraded}");
    // kube-proxy leads everybody there.
    for pod in [&client, &other] {
        until(&pod.workload, external, true);
    }
    stage.agent.start().unwrap();
    // The file lets the client reach the server, and the other one what is outside.
    for pod in [&client, &other] {
        wait(SLOW, || {
            ask(&pod.workload, external).errno.as_deref() == Some("EPERM")
        });
        for _ in 0..3 {
            let denied = ask(&pod.workload, external);
            assert_eq!(denied.errno.as_deref(), Some("EPERM"), "{denied:?}");
        }
    }
    // The rules are in force: what no Service names, they still open.
    let outside = ask(&other.workload, elsewhere);
    assert_ne!(outside.errno.as_deref(), Some("EPERM"), "{outside:?}");

    // A pod's address stays the pod's, whoever calls it his.
    stage.service_at("thief", &[server.address.into()]);
    let mine = stage.service("mine");
    stage.slice("mine", &[server.address.into()]);
    until(&client.workload, mine, true);
    stage.passes(&client.workload, &server);
    stage.is_denied(&other.workload, &server);

    // Whose it is again when no Service names it, and a proxy surely knows.
    stage.kubectl(&["delete", "service", "lure"]);
    wait(SLOW * 4, || {
        ask(&other.workload, external).errno.as_deref() != Some("EPERM")
    });
}
