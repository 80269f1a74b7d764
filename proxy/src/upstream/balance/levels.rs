//! What share of the requests each priority level gets, and each side of a zone's border.

/// A level counts as fully healthy while this times its share of healthy endpoints is at least one: Envoy's default.
const OVERPROVISIONING: f64 = 1.4;

/// The endpoints of a priority level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Health {
    pub(super) healthy: usize,
    pub(super) all: usize,
}

/// What a priority level gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LevelShare {
    /// Of the requests.
    pub(super) share: f64,
    /// Its endpoints' health is ignored.
    pub(super) panics: bool,
}

/// The shares of levels, those used first in front, as Envoy documents it ("Priority levels", "Panic threshold"):
/// a level gets what it can take, the next one the rest. Panic begins only where all levels together can't take all.
pub(super) fn shares(levels: &[Health], panic_below_percent: u8) -> Vec<LevelShare> {
    let healthy_share = |level: &Health| level.healthy as f64 / level.all.max(1) as f64;
    let takes = |level: &Health| (healthy_share(level) * OVERPROVISIONING).min(1.0);
    let total = levels.iter().map(takes).sum::<f64>().min(1.0);
    let mut rest = 1.0;
    let mut shares: Vec<LevelShare> = levels
        .iter()
        .map(|level| {
            let share = if total > 0.0 { (takes(level) / total).min(rest) } else { 0.0 };
            rest -= share;
            let panics = total < 1.0 && healthy_share(level) * 100.0 < f64::from(panic_below_percent);
            LevelShare { share, panics }
        })
        .collect();
    // Nobody is healthy, as before the first health check: failing over for that would be wrong more often than right.
    if total == 0.0
        && let Some(first) = shares.first_mut()
    {
        first.share = 1.0;
    }
    shares
}

/// The share that stays in the zone. Callers are taken to be spread evenly over `zones`: what this zone has less
/// than its part of the capacity goes over its border, so that nobody gets more than everybody.
pub(super) fn local_share(local: u64, all: u64, zones: usize) -> f64 {
    if all == 0 {
        return 0.0;
    }
    (local as f64 * zones.max(1) as f64 / all as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first rows are those of Envoy's documentation, whose shares are cut to whole percents.
    #[test]
    fn levels_get_what_they_can_take_and_panic_only_where_all_together_can_not() {
        // Healthy percents, the threshold; then the share in percent of each level, and whether it panics.
        let cases: [(&[usize], u8, &[(f64, bool)]); 15] = [
            (&[100, 100], 50, &[(100.0, false), (0.0, false)]),
            (&[72, 100], 50, &[(100.0, false), (0.0, false)]),
            (&[71, 100], 50, &[(99.4, false), (0.6, false)]),
            (&[50, 100], 50, &[(70.0, false), (30.0, false)]),
            (&[25, 100], 50, &[(35.0, false), (65.0, false)]),
            (&[0, 100], 50, &[(0.0, false), (100.0, false)]),
            (&[50, 60], 50, &[(70.0, false), (30.0, false)]),
            (&[25, 25], 50, &[(50.0, true), (50.0, true)]),
            (&[5, 65], 50, &[(7.1, true), (92.9, false)]),
            (&[20, 20, 10], 50, &[(40.0, true), (40.0, true), (20.0, true)]),
            (&[60], 50, &[(100.0, false)]),
            (&[49], 50, &[(100.0, true)]),
            (&[49], 0, &[(100.0, false)]),
            (&[0, 0], 50, &[(100.0, true), (0.0, true)]),
            (&[], 50, &[]),
        ];
        for (healthy, panic_below, want) in cases {
            let levels: Vec<_> = healthy.iter().map(|&healthy| Health { healthy, all: 100 }).collect();
            let shares = shares(&levels, panic_below);
            assert_eq!(shares.len(), want.len());
            for (got, (share, panics)) in shares.iter().zip(want) {
                let close = (got.share * 100.0 - share).abs() < 0.05;
                assert!(close && got.panics == *panics, "{healthy:?} {panic_below}: {shares:?}");
            }
        }
    }

    #[test]
    fn what_a_zone_has_less_than_its_part_goes_over_its_border() {
        for (local, all, zones, want) in [
            (10, 30, 3, 1.0),
            (5, 25, 3, 0.6),
            (20, 30, 3, 1.0),
            (1, 10, 2, 0.2),
            (9, 10, 2, 1.0),
            (0, 10, 2, 0.0),
            (5, 5, 1, 1.0),
            (0, 0, 0, 0.0),
        ] {
            let share = local_share(local, all, zones);
            assert!((share - want).abs() < 1e-9, "{local} of {all} in {zones} zones: {share}");
        }
    }
}
