//! Records of one type at one name, and the subset of them that one asker gets where there are many.

use std::net::IpAddr;

use hickory_proto::rr::{RData, Record};

use crate::index::seed;

/// A proxy balances well over this many endpoints, and holds a connection or more to each it uses.
pub const MOST_ENDPOINTS: usize = 256;
/// What the records of an answer may take of the 65535 octets of a message, the rest being for what is around them.
const MOST_BYTES: usize = 60_000;

/// A record that may be left out of an answer.
pub(crate) struct Choice {
    /// Of the endpoint that it tells about.
    pub(crate) seed: u64,
    pub(crate) record: Record,
    /// Comes along in the additional section.
    pub(crate) along: Option<Record>,
}

/// Records of one type at one name.
pub(crate) struct RecordSet {
    always: Option<Record>,
    choices: Vec<Choice>,
    most: usize,
}

/// What one asker gets of a set.
pub(crate) struct Selected<'a> {
    pub(crate) answers: Vec<&'a Record>,
    pub(crate) along: Vec<&'a Record>,
}

impl RecordSet {
    pub(crate) fn fixed(record: Record) -> Self {
        Self::new(Some(record), Vec::new())
    }

    pub(crate) fn new(always: Option<Record>, choices: Vec<Choice>) -> Self {
        let longest = choices.iter().map(Choice::bytes).max().unwrap_or(1);
        let most = MOST_ENDPOINTS.min(MOST_BYTES / longest);
        Self { always, choices, most }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.always.is_none() && self.choices.is_empty()
    }

    /// All records, or where there are too many those that rank highest for this asker (rendezvous hashing): it gets
    /// the same ones as long as they are there, other askers get others, and a change elsewhere moves nothing.
    ///
    /// They start at another one from question to question (`turn`): many a client takes the first address it sees.
    pub(crate) fn select(&self, asker: IpAddr, turn: u16) -> Selected<'_> {
        let mut chosen: Vec<&Choice> = self.choices.iter().collect();
        if chosen.len() > self.most {
            let asker = seed(asker);
            let rank = |choice: &&Choice| std::cmp::Reverse(mix(choice.seed ^ mix(asker)));
            chosen.select_nth_unstable_by_key(self.most, rank);
            chosen.truncate(self.most);
        }
        if !chosen.is_empty() {
            let start = usize::from(turn) % chosen.len();
            chosen.rotate_left(start);
        }
        let records = chosen.iter().map(|choice| &choice.record);
        Selected {
            answers: self.always.iter().chain(records).collect(),
            along: chosen.iter().filter_map(|choice| choice.along.as_ref()).collect(),
        }
    }
}

impl Choice {
    /// At most what it takes in a message; owner names are pointers to the question or to the record before.
    fn bytes(&self) -> usize {
        const OWNER_TYPE_CLASS_TTL_LENGTH: usize = 12;
        let data = match &self.record.data {
            RData::TXT(txt) => txt.txt_data.iter().map(|string| 1 + string.len()).sum(),
            RData::SRV(srv) => 6 + srv.target.len(),
            _ => 16,
        };
        let along = if self.along.is_some() { OWNER_TYPE_CLASS_TTL_LENGTH + 16 } else { 0 };
        OWNER_TYPE_CLASS_TTL_LENGTH + data + along
    }
}

/// Spreads every bit of a number over all bits of the result (the finalizer of SplitMix64, Steele and others 2014).
fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use hickory_proto::rr::Name;
    use hickory_proto::rr::rdata::A;

    use super::*;

    fn set(addresses: impl Iterator<Item = u32>) -> RecordSet {
        let choices = addresses.map(|bits| {
            let ip = std::net::Ipv4Addr::from(0x0a00_0000 + bits);
            Choice {
                seed: seed(ip.into()),
                record: Record::from_rdata(Name::root(), 5, RData::A(A(ip))),
                along: None,
            }
        });
        RecordSet::new(None, choices.collect())
    }

    fn told(set: &RecordSet, asker: u32, turn: u16) -> BTreeSet<IpAddr> {
        let asker = std::net::Ipv4Addr::from(0x0a4d_0000 + asker).into();
        let selected = set.select(asker, turn).answers;
        selected.iter().filter_map(|record| record.data.ip_addr()).collect()
    }

    #[test]
    fn up_to_the_limit_everybody_gets_everything() {
        let all = set(0..256);
        assert_eq!(told(&all, 1, 7).len(), 256);
    }

    #[test]
    fn beyond_it_an_asker_gets_the_same_ones_whatever_changes_elsewhere() {
        let before = told(&set(0..1000), 1, 1);
        assert_eq!(before.len(), MOST_ENDPOINTS);
        assert_eq!(told(&set((0..1000).rev()), 1, 9), before, "the order of the file plays no part");
        let without_some = told(&set(100..1000), 1, 1);
        let gone = before.iter().filter(|ip| !without_some.contains(*ip)).count();
        let new = without_some.iter().filter(|ip| !before.contains(*ip)).count();
        assert_eq!(gone, new, "only what is gone was replaced");
        assert!(gone < 60, "{gone} of 256 went with a tenth of all");
    }

    #[test]
    fn beyond_it_askers_together_use_all_endpoints_about_evenly() {
        let all = set(0..1000);
        let mut askers: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for asker in 0..500 {
            for ip in told(&all, asker, 0) {
                *askers.entry(ip).or_default() += 1;
            }
        }
        assert_eq!(askers.len(), 1000);
        // 128 expected each; five standard deviations are 49.
        assert!(askers.values().all(|count| (79..=177).contains(count)), "{askers:?}");
    }

    #[test]
    fn the_first_one_changes_from_question_to_question() {
        let all = set(0..3);
        let first = |turn| all.select(IpAddr::from([10, 0, 0, 1]), turn).answers[0].data.ip_addr();
        let firsts: BTreeSet<_> = (0..3).map(first).collect();
        assert_eq!(firsts.len(), 3);
    }
}
