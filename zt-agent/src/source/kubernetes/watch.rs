//! Follows the API server: watches of pods, nodes, namespaces, Services and
//! policies, and a heartbeat.
//!
//! Whatever happens to the connection, what was told stays: a watch goes on
//! where it was, and a list replaces what was known only when it is whole.

use std::{
    cell::RefCell,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures::StreamExt as _;
use kube::{
    Api, Client,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        WatchStreamExt as _,
        utils::Backoff,
        watcher::{self, Event},
    },
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
    report::Reporter,
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
/// it tells in their statuses, and what was denied to its pods in Events.
pub async fn follow(
    config: &KubernetesConfig,
    shared: &Shared,
    verdicts: Receiver<Arc<[Verdict]>>,
    denials: broadcast::Receiver<Arc<Record>>,
    told: impl Fn(News),
) {
    let follower = Follower {
        shared,
        told,
        health: RefCell::new(Health::new(now())),
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
                Reporter::new(client.clone(), shared.node()).run(verdicts),
            );
        }
    };
    let denials = async {
        if config.events {
            denials::tell(client.clone(), shared, denials).await;
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
        follower.keep_asking(&client),
    );
}

async fn client(config: &KubernetesConfig) -> Result<Client, ClientError> {
    let config = match &config.kubeconfig {
        Some(path) => {
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?
        }
        None => kube::Config::incluster()?,
    };
    Ok(Client::try_from(config)?)
}

fn now() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}

struct Follower<'a, T> {
    shared: &'a Shared,
    told: T,
    health: RefCell<Health>,
}

impl<T: Fn(News)> Follower<'_, T> {
    async fn watch<K: Kind>(&self, client: &Client) {
        let mut config = watcher::Config::default()
            .timeout(WATCH_SECONDS)
            .streaming_lists();
        loop {
            let api = Api::<K>::all(client.clone());
            let events = watcher::watcher(api, config.clone()).backoff(Waits(Waits::FIRST));
            let mut events = pin!(events);
            let mut listing = false;
            let streams =
                config.initial_list_strategy == watcher::InitialListStrategy::StreamingList;
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => self.tell(event, &mut listing),
                    Err(error) if streams && cannot_stream(&error, listing) => {
                        tracing::info!(
                            watched = K::WATCHED.name(),
                            "the API server does not stream lists: it is asked for pages"
                        );
                        config.initial_list_strategy = watcher::InitialListStrategy::ListWatch;
                        break;
                    }
                    Err(error) => match K::WATCHED.advice() {
                        Some(advice) if is_unknown(&error) => self.miss::<K>(advice),
                        _ => self.fail::<K>(&error),
                    },
                }
            }
        }
    }

    fn tell<K: Kind>(&self, event: Event<K>, listing: &mut bool) {
        let done = matches!(event, Event::InitDone);
        *listing = !done && (*listing || matches!(event, Event::Init));
        let news = self.shared.tell(|cluster| {
            if !matches!(event, Event::Init) {
                cluster.define(K::WATCHED, true);
            }
            let news = change(event, cluster).is_some_and(|change| K::tell(cluster, change));
            news && cluster.is_complete()
        });
        self.health.borrow_mut().told(K::WATCHED);
        // A list is looked at when it is done; it may be of thousands.
        if news && !*listing || done {
            (self.told)(News::Changed);
        }
        if done {
            self.report();
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

    fn fail<K: Kind>(&self, error: &watcher::Error) {
        let watched = K::WATCHED;
        let text = format!("{} cannot be watched: {}", watched.name(), chain(error));
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

/// Whether the API server refuses to stream a list. One that is older, or has it
/// switched off, calls it a bad request; one with an old etcd behind it begins
/// and breaks off.
fn cannot_stream(error: &watcher::Error, listing: bool) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            matches!(status.code, 400 | 422) && status.message.contains("sendInitialEvents")
        }
        // "Gone" is what becomes of every watch.
        watcher::Error::WatchError(status) => listing && status.code != 410,
        _ => false,
    }
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
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0;
        self.0 = Self::LONGEST.min(wait * 2);
        // Not for secrets: nodes that fail together differ in nanoseconds.
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let chance = clock.unwrap_or_default().subsec_micros() % 1000;
        Some(wait + wait * chance / 1000)
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {
        self.0 = Self::FIRST;
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
    use super::*;

    #[test]
    fn waits_grow_and_are_bounded_and_begin_anew() {
        let mut waits = Waits(Waits::FIRST);
        let first = waits.next().unwrap();
        assert!(first >= Waits::FIRST && first <= Waits::FIRST * 2);
        let last = waits.by_ref().nth(20).unwrap();
        assert!(last >= Waits::LONGEST && last <= LONGEST_WAIT, "{last:?}");
        waits.reset();
        assert!(waits.next().unwrap() <= Waits::FIRST * 2);
    }

    #[test]
    fn only_a_refusal_of_streaming_changes_how_lists_are_asked_for() {
        let status = |code: u16, message: &str| {
            Box::new(kube::core::Status {
                code,
                message: message.to_owned(),
                ..kube::core::Status::default()
            })
        };
        let refused = |code, message| {
            let error = kube::Error::Api(status(code, message));
            cannot_stream(&watcher::Error::WatchStartFailed(error), false)
        };
        assert!(refused(422, "sendInitialEvents is forbidden for watch"));
        assert!(!refused(403, "sendInitialEvents"));
        assert!(!refused(422, "resourceVersion: Invalid value"));
        let broke_off =
            |code, listing| cannot_stream(&watcher::Error::WatchError(status(code, "x")), listing);
        assert!(broke_off(500, true));
        assert!(!broke_off(410, true) && !broke_off(500, false));
    }
}
