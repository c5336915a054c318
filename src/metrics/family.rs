//! How counts of [`cells`](super::cells) are shown to the registry that renders them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto;

use super::cells::{Cells, Counter, Histogram};

/// Counters by the values of their labels.
type Series = HashMap<Box<[Box<str>]>, Counter>;

/// Counters of one name, told apart by the values of their labels. A counter that was made stays: a scrape never sees one go back.
#[derive(Debug, Clone)]
pub(super) struct Counters {
    cells: Arc<Cells>,
    desc: Desc,
    labels: &'static [&'static str],
    series: Arc<Mutex<Series>>,
}

impl Counters {
    pub(super) fn new(cells: &Arc<Cells>, name: &str, help: &str, labels: &'static [&'static str]) -> Result<Self, prometheus::Error> {
        let names = labels.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(name.to_owned(), help.to_owned(), names, HashMap::new())?;
        Ok(Self { cells: Arc::clone(cells), desc, labels, series: Arc::default() })
    }

    /// The counter with these values, in the order of the labels; made when it is the first. Not for the way of a request: it locks.
    pub(super) fn of(&self, values: &[&str]) -> Counter {
        let key = values.iter().map(|value| (*value).into()).collect();
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        series.entry(key).or_insert_with(|| Counter::new(&self.cells)).clone()
    }
}

impl Collector for Counters {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = series.iter().map(|(values, counter)| {
            let pairs = self.labels.iter().zip(values).map(|(name, value)| {
                let mut pair = proto::LabelPair::default();
                pair.set_name((*name).to_owned());
                pair.set_value(value.to_string());
                pair
            });
            let mut value = proto::Counter::default();
            value.set_value(counter.get() as f64);
            let mut metric = proto::Metric::from_label(pairs.collect());
            metric.set_counter(value);
            metric
        });
        family(&self.desc, proto::MetricType::COUNTER, metrics.collect())
    }
}

/// A counter that also goes down.
#[derive(Debug)]
pub(super) struct Gauge {
    desc: Desc,
    counter: Counter,
}

impl Gauge {
    pub(super) fn new(name: &str, help: &str, counter: &Counter) -> Result<Self, prometheus::Error> {
        Ok(Self { desc: Desc::new(name.to_owned(), help.to_owned(), Vec::new(), HashMap::new())?, counter: counter.clone() })
    }
}

impl Collector for Gauge {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut value = proto::Gauge::default();
        // Read while one thread counts up and another down, the sum may be one below zero.
        value.set_value(self.counter.get().cast_signed().max(0) as f64);
        let mut metric = proto::Metric::default();
        metric.set_gauge(value);
        family(&self.desc, proto::MetricType::GAUGE, vec![metric])
    }
}

/// A histogram of times, shown in seconds.
#[derive(Debug)]
pub(super) struct Times {
    desc: Desc,
    histogram: Histogram,
}

impl Times {
    pub(super) fn new(name: &str, help: &str, histogram: &Histogram) -> Result<Self, prometheus::Error> {
        Ok(Self { desc: Desc::new(name.to_owned(), help.to_owned(), Vec::new(), HashMap::new())?, histogram: histogram.clone() })
    }
}

impl Collector for Times {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let (buckets, count, sum) = self.histogram.read();
        let mut value = proto::Histogram::default();
        value.set_sample_count(count);
        value.set_sample_sum(sum);
        let buckets = buckets.into_iter().map(|(bound, within)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(within);
            bucket
        });
        value.set_bucket(buckets.collect());
        let mut metric = proto::Metric::default();
        metric.set_histogram(value);
        family(&self.desc, proto::MetricType::HISTOGRAM, vec![metric])
    }
}

fn family(desc: &Desc, kind: proto::MetricType, metrics: Vec<proto::Metric>) -> Vec<proto::MetricFamily> {
    let mut family = proto::MetricFamily::default();
    family.set_name(desc.fq_name.clone());
    family.set_help(desc.help.clone());
    family.set_field_type(kind);
    family.set_metric(metrics);
    vec![family]
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{Encoder, Registry, TextEncoder};
    use std::time::Duration;

    #[test]
    fn what_was_counted_is_shown_in_the_text_format() {
        let (registry, cells) = (Registry::new(), Arc::new(Cells::default()));
        let counters = Counters::new(&cells, "refusals_total", "Refusals.", &["route", "code"]).unwrap();
        let gauge = Counter::new(&cells);
        let times = Histogram::new(&cells, &[1_000, 1_000_000_000]);
        registry.register(Box::new(counters.clone())).unwrap();
        registry.register(Box::new(Gauge::new("in_flight", "Now.", &gauge).unwrap())).unwrap();
        registry.register(Box::new(Times::new("own_seconds", "Time.", &times).unwrap())).unwrap();
        counters.of(&["a\"b", "forbidden"]).inc();
        counters.of(&["a\"b", "forbidden"]).inc();
        counters.of(&["c", ""]).inc();
        gauge.inc();
        gauge.dec();
        gauge.inc();
        times.observe(Duration::from_millis(500));
        times.observe(Duration::from_secs(2));
        let mut text = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
        let expected = "# HELP in_flight Now.\n# TYPE in_flight gauge\nin_flight 1\n\
            # HELP own_seconds Time.\n# TYPE own_seconds histogram\n\
            own_seconds_bucket{le=\"0.000001\"} 0\nown_seconds_bucket{le=\"1\"} 1\nown_seconds_bucket{le=\"+Inf\"} 2\n\
            own_seconds_sum 2.5\nown_seconds_count 2\n\
            # HELP refusals_total Refusals.\n# TYPE refusals_total counter\n\
            refusals_total{route=\"a\\\"b\",code=\"forbidden\"} 2\nrefusals_total{route=\"c\",code=\"\"} 1\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}
