//! Follows the API server: watches of pods, nodes, namespaces, Services and
//! policies, and a heartbeat.
//!
//! Whatever happens to the connection, what was told stays: a watch goes on
//! where it was, and a list replaces what was known only when it is whole.
//!
//! Lists are asked for in pages and not as streams, though streams cost the API
//! server less: a page without a `resourceVersion` is a consistent read of etcd,
//! and kube asks for streams with `resourceVersion=0`, which an API server that
//! lags behind may answer with the past, in which a revoked policy is still
//! there and a new denial is not.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    path::Path,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures::StreamExt as _;
use kube::{
    Api, Client,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher::{self, Event},
};
use tokio::{
    sync::{broadcast, watch::Receiver},
    time::{sleep, timeout},
};

use super::{
    Shared,
    cluster::Cluster,
    denials,
    health::{Health, LONGEST_WAIT, Stale},
    leases::{self, Claim},
    report::Reporter,
    sums::Sums,
    table::Change,
    wire::{
        GroupObject, Kind, NamespaceObject, NodeObject, PodObject, PolicyObject, ServiceObject,
        ServiceRangeObject, SliceObject,
    },
};
use crate::{
    audit::record::Record, document::config::KubernetesConfig, source::resources::Verdict,
};

/// Between two heartbeats, and how long one may take.
const HEARTBEAT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks for a configuration that was not there.
const RETRY: Duration = Duration::from_secs(5);
/// A watch is begun anew after so many seconds: a connection that died without
/// a word is noticed then.
const WATCH_SECONDS: u32 = 120;
/// How long a connection may say nothing while something is waited for: longer
/// than a watch without news.
const SILENCE: Duration = Duration::from_secs(130);

/// What the rest of the agent hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The cluster differs.
    Changed,
    Status(Status),
}

/// How the cluster is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Pods that are known.
    pub pods: usize,
    pub stale: Option<Stale>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error("the kubeconfig cannot be used: {0}; see `kubernetes.kubeconfig` in the configuration")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error(
        "there is no service account of a pod here: {0}; outside a cluster name a kubeconfig with `kubernetes.kubeconfig` in the configuration"
    )]
    InCluster(#[from] kube::config::InClusterError),
    #[error("no connection can be made: {0}")]
    Client(#[from] kube::Error),
}

/// Follows the API server and never ends. What this node makes of the policies
/// it tells in their statuses, what was denied to its pods in Events, and what it
/// claims of itself in a Lease.
pub async fn follow(
    config: &KubernetesConfig,
    shared: &Shared,
    verdicts: Receiver<Arc<[Verdict]>>,
    denials: broadcast::Receiver<Arc<Record>>,
    claim: impl Fn() -> Claim,
    told: impl Fn(News),
) {
    let follower = Follower {
        shared,
        told,
        health: RefCell::new(Health::new(now())),
        patience: LONGEST_WAIT,
    };
    let client = loop {
        match client(config).await {
            Ok(client) => break client,
            Err(error) => {
                tracing::error!(%error, "the cluster cannot be followed");
                follower.beat(Err(error.to_string()));
            }
        }
        sleep(RETRY).await;
    };
    let policies = async {
        if config.policies {
            tokio::join!(
                follower.watch::<PolicyObject>(&client),
                follower.watch::<GroupObject>(&client),
                Reporter::new(client.clone(), shared).run(verdicts),
                Sums::new(client.clone(), shared).run(),
            );
        }
    };
    let denials = async {
        if config.events {
            denials::tell(client.clone(), shared, denials).await;
        }
    };
    let leases = async {
        let changed = || (follower.told)(News::Changed);
        if config.leases {
            leases::follow(client.clone(), shared, claim, changed).await;
        } else if shared.tell(|cluster| cluster.govern(BTreeSet::new())) {
            changed();
        }
    };
    tokio::join!(
        follower.watch::<PodObject>(&client),
        follower.watch::<NodeObject>(&client),
        follower.watch::<NamespaceObject>(&client),
        follower.watch::<ServiceObject>(&client),
        follower.watch::<SliceObject>(&client),
        follower.watch::<ServiceRangeObject>(&client),
        policies,
        denials,
        leases,
        follower.keep_asking(&client),
    );
}

async fn client(config: &KubernetesConfig) -> Result<Client, ClientError> {
    let config = connection(config.kubeconfig.as_deref()).await?;
    Ok(Client::try_from(config)?)
}

async fn connection(kubeconfig: Option<&Path>) -> Result<kube::Config, ClientError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?
        }
        None => kube::Config::incluster()?,
    };
    config.read_timeout = Some(SILENCE);
    // It is counted from the request, not from the answer before.
    config.reset_reader_on_write = true;
    Ok(config)
}

fn now() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}

struct Follower<'a, T> {
    shared: &'a Shared,
    told: T,
    health: RefCell<Health>,
    /// A list that tells nothing for so long counts as failing.
    patience: Duration,
}

impl<T: Fn(News)> Follower<'_, T> {
    async fn watch<K: Kind>(&self, client: &Client) {
        let config = watcher::Config::default().timeout(WATCH_SECONDS);
        let mut events = pin!(watcher::watcher(Api::<K>::all(client.clone()), config));
        let mut waits = Waits(Waits::FIRST);
        let mut listing = true;
        loop {
            let patience = if listing {
                self.patience
            } else {
                Duration::MAX
            };
            match timeout(patience, events.next()).await {
                Ok(Some(Ok(event))) => {
                    listing = matches!(event, Event::Init | Event::InitApply(_));
                    if !listing {
                        waits = Waits(Waits::FIRST);
                    }
                    self.tell(event);
                }
                Ok(Some(Err(error))) => {
                    self.meet::<K>(&error);
                    sleep(waits.next()).await;
                }
                Ok(None) => return,
                Err(_) => self.fail::<K>("their list does not go on"),
            }
        }
    }

    fn tell<K: Kind>(&self, event: Event<K>) {
        let done = matches!(event, Event::InitDone);
        let listing = matches!(event, Event::Init | Event::InitApply(_));
        let news = self.shared.tell(|cluster| {
            if !matches!(event, Event::Init) {
                cluster.define(K::WATCHED, true);
            }
            let news = change(event, cluster).is_some_and(|change| K::tell(cluster, change));
            news && cluster.is_complete()
        });
        // A list that begins may fail like the one before.
        if !listing {
            self.health.borrow_mut().told(K::WATCHED);
        }
        // It is looked at when it is done; it may be of thousands.
        if news && !listing || done {
            (self.told)(News::Changed);
        }
        if done {
            self.report();
        }
    }

    fn meet<K: Kind>(&self, error: &watcher::Error) {
        match K::WATCHED.advice() {
            Some(advice) if is_unknown(error) => self.miss::<K>(advice),
            _ => self.fail::<K>(&chain(error)),
        }
    }

    /// The API server does not know the kind: nobody has said anything of such
    /// objects, and what was known of them stays.
    fn miss<K: Kind>(&self, advice: &str) {
        let watched = K::WATCHED;
        let is_news = self.shared.tell(|cluster| cluster.define(watched, false));
        self.health.borrow_mut().told(watched);
        if is_news {
            let kind = K::kind(&());
            tracing::warn!(%kind, "the API server does not know this kind: {advice}");
            (self.told)(News::Changed);
            self.report();
        }
    }

    fn fail<K: Kind>(&self, error: &str) {
        let watched = K::WATCHED;
        let text = format!("{} cannot be watched: {error}", watched.name());
        tracing::warn!("{text}");
        self.health
            .borrow_mut()
            .failed(watched, text, Instant::now());
        self.report();
    }

    /// A watch that hangs looks like one without news.
    async fn keep_asking(&self, client: &Client) {
        loop {
            let answer = match timeout(PATIENCE, client.apiserver_version()).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(chain(&error)),
                Err(_) => Err("it does not answer".to_owned()),
            };
            let pause = if answer.is_ok() { HEARTBEAT } else { RETRY };
            self.beat(answer);
            sleep(pause).await;
        }
    }

    fn beat(&self, answer: Result<(), String>) {
        self.health.borrow_mut().beat(answer, now());
        self.report();
    }

    fn report(&self) {
        (self.told)(News::Status(Status {
            pods: self.shared.tell(|cluster| cluster.pods()),
            stale: self.health.borrow().stale(Instant::now()),
        }));
    }
}

fn change<K: Kind>(event: Event<K>, cluster: &mut Cluster) -> Option<Change<K::Kept>> {
    Some(match event {
        Event::Apply(object) => Change::Applied(object.keep(cluster)?),
        Event::Delete(object) => Change::Deleted(object.uid()?),
        Event::Init => Change::Listing,
        Event::InitApply(object) => Change::Listed(object.keep(cluster)?),
        Event::InitDone => Change::ListDone,
    })
}

/// Whether the API server does not know the kind.
fn is_unknown(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code == 404,
        _ => false,
    }
}

/// Waits between two tries of a watch: twice as long each time, and up to as
/// long again, so that not all nodes come at once.
struct Waits(Duration);

impl Waits {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(LONGEST_WAIT.as_secs() / 2);

    fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = Self::LONGEST.min(wait * 2);
        // Not for secrets: nodes that fail together differ in nanoseconds.
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let chance = clock.unwrap_or_default().subsec_micros() % 1000;
        wait + wait * chance / 1000
    }
}

/// An error with all its causes: the outermost often says only what was tried.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.dedup_by(|inner, outer| outer.contains(&*inner));
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::{super::stub, *};
    use crate::model::{Template, template};

    fn shared() -> Shared {
        Shared::new(
            "here",
            Template::parse(template::DEFAULT, "td", "c").unwrap(),
        )
    }

    fn follower(shared: &Shared) -> Follower<'_, impl Fn(News)> {
        let follower = Follower {
            shared,
            told: |_| {},
            health: RefCell::new(Health::new(now())),
            patience: Duration::from_millis(100),
        };
        follower.beat(Ok(()));
        follower
    }

    fn error(follower: &Follower<'_, impl Fn(News)>) -> Option<String> {
        let stale = follower.health.borrow().stale(Instant::now());
        stale.map(|stale| stale.error)
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let mut waits = Waits(Waits::FIRST);
        let first = waits.next();
        assert!(first >= Waits::FIRST && first <= Waits::FIRST * 2);
        let next: Vec<Duration> = (0..20).map(|_| waits.next()).collect();
        let last = next[19];
        assert!(last >= Waits::LONGEST && last <= LONGEST_WAIT, "{next:?}");
    }

    #[test]
    fn a_watch_that_failed_is_well_when_its_list_is_whole_and_not_when_it_begins() {
        let shared = shared();
        let follower = follower(&shared);
        follower.fail::<NodeObject>("refused");
        let node = serde_json::json!({"metadata": {"name": "n", "uid": "0f0e0d0c-1111-4222-8333-444455556666"}});
        let node: NodeObject = serde_json::from_value(node).unwrap();
        for event in [Event::Init, Event::InitApply(node)] {
            follower.tell(event);
            assert!(error(&follower).unwrap().contains("refused"));
        }
        follower.tell(Event::<NodeObject>::InitDone);
        assert_eq!(error(&follower), None);
    }

    #[tokio::test]
    async fn a_list_is_a_consistent_read_and_the_waits_between_tries_grow() {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let asked = requests.clone();
        let client = stub::serve(move |request| {
            asked.lock().unwrap().push(request.to_owned());
            Some((500, "{}".to_owned()))
        })
        .await;
        let shared = shared();
        let follower = follower(&shared);
        let watch = follower.watch::<PodObject>(&client);
        // Without growth there would be four.
        assert!(timeout(Waits::FIRST * 7, watch).await.is_err());
        let requests = requests.lock().unwrap();
        assert!((1..=3).contains(&requests.len()), "{requests:?}");
        for request in &*requests {
            assert!(request.starts_with("GET /api/v1/pods?"), "{request}");
            for word in ["resourceVersion", "watch", "sendInitialEvents"] {
                assert!(!request.contains(word), "{request}");
            }
        }
    }

    #[tokio::test]
    async fn a_list_that_hangs_is_not_well() {
        let client = stub::serve(|_| None).await;
        let shared = shared();
        let follower = follower(&shared);
        let watch = follower.watch::<PodObject>(&client);
        assert!(timeout(Duration::from_secs(1), watch).await.is_err());
        let error = error(&follower).unwrap();
        assert!(error.contains("does not go on"), "{error}");
    }

    #[tokio::test]
    async fn nothing_is_waited_for_for_ever() {
        let text = "{clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], \
                    contexts: [{name: c, context: {cluster: c, user: u}}], \
                    users: [{name: u}], current-context: c}";
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(kubeconfig.path(), text).unwrap();
        let config = connection(Some(kubeconfig.path())).await.unwrap();
        let watch = Duration::from_secs(WATCH_SECONDS.into());
        assert!(
            config.read_timeout.unwrap() > watch,
            "a watch may be silent"
        );
        assert!(config.connect_timeout.is_some() && config.write_timeout.is_some());
    }
}
