//! One cluster for all tests of a binary: each has names of its own in it.

use std::sync::OnceLock;

use super::{Cluster, ETCD_VARIABLE, KUBERNETES_VARIABLE, Programs, is_ci};
use crate::feature;

static SHARED: OnceLock<Result<Option<Cluster>, String>> = OnceLock::new();

/// The cluster of this process, started when it is first asked for and ended with
/// the process. Where Kubernetes was not built the test counts as skipped, and
/// must return.
///
/// # Panics
/// When it does not start, and in CI where it was not built.
#[must_use]
#[track_caller]
pub fn shared() -> Option<&'static Cluster> {
    let shared = SHARED.get_or_init(|| start().map_err(|error| format!("{error:#}")));
    match shared {
        Ok(Some(cluster)) => Some(cluster),
        Ok(None) => {
            let probed = format!(
                "no {KUBERNETES_VARIABLE} and {ETCD_VARIABLE} in the environment; \
                 `cargo xtask test` builds Kubernetes where there is Go, and sets them"
            );
            assert!(!is_ci(), "nothing may be skipped in CI: {probed}");
            feature::skip(&probed);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn start() -> anyhow::Result<Option<Cluster>> {
    let Some(programs) = Programs::from_environment()? else {
        return Ok(None);
    };
    let cluster = Cluster::start(&programs)?;
    // SAFETY: the function has the signature that is asked for, and uses only what
    // is never freed.
    let registered = unsafe { libc::atexit(end) };
    anyhow::ensure!(registered == 0, "the cluster's end cannot be registered");
    Ok(Some(cluster))
}

/// What is static is never dropped.
extern "C" fn end() {
    if let Some(Ok(Some(cluster))) = SHARED.get() {
        cluster.end();
    }
}
