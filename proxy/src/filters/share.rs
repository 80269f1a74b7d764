//! A share of all requests.

/// A share of all requests, taken by chance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Share(f64);

impl Share {
    /// So many of a hundred; all of them where nothing is stated.
    pub(super) fn of_percent(percent: f64) -> Self {
        // Not a number is no share.
        Self(if percent > 0.0 { (percent / 100.0).min(1.0) } else { 0.0 })
    }

    /// Whether it takes the request that drew this number, from 0 to below 1.
    pub(super) fn takes(self, drawn: f64) -> bool {
        drawn < self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_takes_as_many_as_it_says() {
        const ALMOST_ONE: f64 = 1.0 - f64::EPSILON;
        for (percent, drawn, want) in [
            (0.0, 0.0, false),
            (100.0, ALMOST_ONE, true),
            (50.0, 0.499, true),
            (50.0, 0.5, false),
            (0.1, 0.000_999, true),
            (0.1, 0.001, false),
            (250.0, ALMOST_ONE, true),
            (-1.0, 0.0, false),
            (f64::NAN, 0.0, false),
        ] {
            assert_eq!(Share::of_percent(percent).takes(drawn), want, "{percent} {drawn}");
        }
    }
}
