//! Whether a hop is recorded.

use crate::config::{self, Sampling};

/// How it is decided whether a hop is recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// By what.
    pub sampling: Sampling,
    /// Share of the traces, 0 to 1.
    pub ratio: f64,
}

impl Sampler {
    /// The decision for a trace; `caller` is the caller's, if it made one.
    pub fn is_sampled(&self, trace_id: u128, caller: Option<bool>) -> bool {
        match self.sampling {
            Sampling::Always => true,
            Sampling::Never => false,
            Sampling::Ratio => self.is_within_ratio(trace_id),
            Sampling::ParentBased => caller.unwrap_or_else(|| self.is_within_ratio(trace_id)),
        }
    }

    /// Whether the trace's id lies in the share of all ids: as OpenTelemetry's `TraceIdRatioBased` in Go, by 63 of the
    /// last 64 bits, so that hops with one ratio decide the same, and one with a higher ratio records what one with a
    /// lower does.
    fn is_within_ratio(&self, trace_id: u128) -> bool {
        const ALL: u64 = 1 << 63;
        // Multiplying by a power of two is exact, and a ratio above 1 or below 0 is cut off.
        let bound = (self.ratio * ALL as f64) as u64;
        (trace_id as u64) >> 1 < bound
    }

    /// The same where a route says otherwise.
    pub(super) fn with(self, route: Option<&config::RouteTracing>) -> Self {
        let Some(route) = route else { return self };
        Self {
            sampling: route.sampling.unwrap_or(self.sampling),
            ratio: route.sample_ratio.unwrap_or(self.ratio),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// In the half of the ids that a ratio of one half takes, and not in it.
    const LOW: u128 = 0xffff_ffff_ffff_ffff_7fff_ffff_ffff_ffff;
    const HIGH: u128 = 0x8000_0000_0000_0000;

    #[test]
    fn each_way_of_sampling_decides_by_the_caller_or_the_id_or_neither() {
        use Sampling::{Always, Never, ParentBased, Ratio};
        for (sampling, id, caller, is_sampled) in [
            (Always, HIGH, Some(false), true),
            (Never, LOW, Some(true), false),
            (Ratio, LOW, Some(false), true),
            (Ratio, HIGH, Some(true), false),
            (ParentBased, HIGH, Some(true), true),
            (ParentBased, LOW, Some(false), false),
            (ParentBased, LOW, None, true),
            (ParentBased, HIGH, None, false),
        ] {
            let sampler = Sampler { sampling, ratio: 0.5 };
            assert_eq!(sampler.is_sampled(id, caller), is_sampled, "{sampling:?} {id:x} {caller:?}");
        }
    }

    #[test]
    fn a_ratio_takes_its_share_of_the_ids_and_a_higher_one_takes_them_too() {
        let mut rng = SmallRng::seed_from_u64(1);
        let ids: Vec<u128> = (0..100_000).map(|_| rng.random()).collect();
        let sampled = |ratio| {
            let sampler = Sampler { sampling: Sampling::Ratio, ratio };
            ids.iter().filter(|id| sampler.is_sampled(**id, None)).count()
        };
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 100_000));
        assert!((9_500..10_500).contains(&sampled(0.1)), "{}", sampled(0.1));
        let [tenth, half] = [0.1, 0.5].map(|ratio| Sampler { sampling: Sampling::Ratio, ratio });
        assert!(ids.iter().all(|id| !tenth.is_sampled(*id, None) || half.is_sampled(*id, None)));
        let all = Sampler { sampling: Sampling::Ratio, ratio: 1.0 };
        assert!(all.is_sampled(u128::MAX, None));
    }

    #[test]
    fn a_route_changes_what_it_states() {
        let sampler = Sampler { sampling: Sampling::ParentBased, ratio: 0.1 };
        assert_eq!(sampler.with(None), sampler);
        let route = config::RouteTracing { sampling: None, sample_ratio: Some(1.0) };
        assert_eq!(sampler.with(Some(&route)), Sampler { ratio: 1.0, ..sampler });
        let route = config::RouteTracing { sampling: Some(Sampling::Never), sample_ratio: None };
        assert_eq!(sampler.with(Some(&route)), Sampler { sampling: Sampling::Never, ..sampler });
    }
}
