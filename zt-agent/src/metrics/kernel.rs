//! How full the kernel's maps are.

use prometheus::{
    core::{Collector, Desc},
    proto::MetricFamily,
};

use super::family::Spec;
use crate::kernel::{
    counters::{self, Fill},
    pins::Pins,
};

const ENTRIES: Spec = Spec {
    name: "zt_map_entries",
    help: "Rows in a kernel map.",
    labels: &["map"],
};
const LIMIT: Spec = Spec {
    name: "zt_map_limit",
    help: "Rows that a kernel map takes.",
    labels: &["map"],
};
pub(super) const ALL: [Spec; 2] = [ENTRIES, LIMIT];

/// The maps that can fill up.
const MAPS: [&str; 8] = [
    "zt_policy_v1",
    "zt_range_v1",
    "zt_address_v1",
    "zt_cidr_v1",
    "zt_workload_v1",
    "zt_flow_v1",
    "zt_spill_v1",
    "zt_count_v1",
];

/// Counts rows at every scrape.
#[derive(Debug)]
pub struct Maps {
    pins: Pins,
    descriptions: [Desc; 2],
}

impl Maps {
    #[must_use]
    pub fn new(pins: Pins) -> Self {
        Self {
            pins,
            descriptions: ALL.map(|spec| spec.desc()),
        }
    }

    fn fill(&self, name: &'static str) -> Option<Fill> {
        counters::fill(&self.pins, name)
            .inspect_err(|error| tracing::error!(%error, "{name} is missing in this scrape"))
            .ok()
    }
}

impl Collector for Maps {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let fills: Vec<Fill> = MAPS.iter().filter_map(|name| self.fill(name)).collect();
        let series = |value: fn(&Fill) -> u64| {
            let one = move |fill: &Fill| (vec![fill.name.to_owned()], value(fill));
            fills.iter().map(one).collect::<Vec<_>>()
        };
        vec![
            ENTRIES.gauges(series(|fill| fill.rows as u64)),
            LIMIT.gauges(series(|fill| fill.limit.into())),
        ]
    }
}
