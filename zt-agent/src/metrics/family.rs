//! One metric family, built by hand: our numbers are read when somebody asks,
//! not counted along the way.

use prometheus::{
    core::Desc,
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType, Summary},
};

/// A metric's name, help and labels.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub name: &'static str,
    pub help: &'static str,
    pub labels: &'static [&'static str],
}

impl Spec {
    /// What the registry wants to know.
    ///
    /// # Panics
    /// When a name is no metric name: a mistake in this folder.
    #[must_use]
    pub fn desc(&self) -> Desc {
        let labels = self.labels.iter().map(|label| (*label).to_owned());
        Desc::new(
            self.name.to_owned(),
            self.help.to_owned(),
            labels.collect(),
            Default::default(),
        )
        .expect("a metric's name and labels are well formed")
    }

    /// Counters with the values of their labels.
    #[must_use]
    pub fn counters(&self, series: impl IntoIterator<Item = (Vec<String>, u64)>) -> MetricFamily {
        let metrics = series.into_iter().map(|(labels, value)| {
            let mut counter = Counter::default();
            counter.set_value(float(value));
            let mut metric = self.metric(labels);
            metric.set_counter(counter);
            metric
        });
        self.family(MetricType::COUNTER, metrics.collect())
    }

    /// Gauges with the values of their labels.
    #[must_use]
    pub fn gauges(&self, series: impl IntoIterator<Item = (Vec<String>, u64)>) -> MetricFamily {
        let metrics = series.into_iter().map(|(labels, value)| {
            let mut gauge = Gauge::default();
            gauge.set_value(float(value));
            let mut metric = self.metric(labels);
            metric.set_gauge(gauge);
            metric
        });
        self.family(MetricType::GAUGE, metrics.collect())
    }

    /// One gauge without labels.
    #[must_use]
    pub fn gauge(&self, value: u64) -> MetricFamily {
        self.gauges([(Vec::new(), value)])
    }

    /// One counter without labels.
    #[must_use]
    pub fn counter(&self, value: u64) -> MetricFamily {
        self.counters([(Vec::new(), value)])
    }

    /// One summary without labels.
    #[must_use]
    pub fn summary(&self, summary: Summary) -> MetricFamily {
        let mut metric = self.metric(Vec::new());
        metric.set_summary(summary);
        self.family(MetricType::SUMMARY, vec![metric])
    }

    fn metric(&self, values: Vec<String>) -> Metric {
        let pairs = self.labels.iter().zip(values).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value);
            pair
        });
        Metric::from_label(pairs.collect())
    }

    fn family(&self, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.name.to_owned());
        family.set_help(self.help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        family
    }
}

/// Prometheus has floats only; they are exact up to 2^53.
#[must_use]
pub fn float(value: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count beyond 2^53 is rounded")]
    {
        value as f64
    }
}
