//! What belongs to host names, exact ones and those below `*.domain`.

use std::collections::HashMap;

/// The longest name of DNS (RFC 1035 2.3.4).
const MAX_NAME: usize = 253;

/// A value for each pattern: a host name, `*.` and a host name for all below it, or none for every host.
///
/// A lookup costs one hash, and one more for each label by which the host may lie below a pattern; it allocates
/// nothing.
#[derive(Clone, Debug)]
pub struct HostPatterns<T> {
    exact: HashMap<Box<str>, T>,
    /// By what follows `*.`.
    below: HashMap<Box<str>, T>,
    /// Labels in the longest key of `below`.
    most_labels: usize,
    every: Option<T>,
}

impl<T> Default for HostPatterns<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), below: HashMap::new(), most_labels: 0, every: None }
    }
}

impl<T> HostPatterns<T> {
    /// The value of a pattern, made if there is none. Case and the root's dot make no difference.
    pub fn entry(&mut self, pattern: Option<&str>, make: impl FnOnce() -> T) -> &mut T {
        let Some(pattern) = pattern else {
            return self.every.get_or_insert_with(make);
        };
        let pattern = outrigger_ca::host::normal(pattern);
        match pattern.strip_prefix("*.") {
            Some(domain) => {
                self.most_labels = self.most_labels.max(labels(domain));
                self.below.entry(domain.into()).or_insert_with(make)
            }
            None => self.exact.entry(pattern.into()).or_insert_with(make),
        }
    }

    /// The same patterns with other values.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> HostPatterns<U> {
        let mut all =
            |values: HashMap<Box<str>, T>| values.into_iter().map(|(key, value)| (key, f(value))).collect();
        HostPatterns {
            exact: all(self.exact),
            below: all(self.below),
            most_labels: self.most_labels,
            every: self.every.map(f),
        }
    }

    /// Asks `f` for each pattern that `host` matches, the most specific first, until it gives something: the host
    /// itself, then the domains above it from the longest on, then every host.
    pub fn find_map<'a, R>(&'a self, host: &str, mut f: impl FnMut(&'a T) -> Option<R>) -> Option<R> {
        let host = outrigger_ca::host::without_root(host);
        let mut lower = [0; MAX_NAME];
        let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            match lower.get_mut(..host.len()) {
                Some(lower) => {
                    lower.copy_from_slice(host.as_bytes());
                    lower.make_ascii_lowercase();
                    std::str::from_utf8(lower).unwrap_or_default()
                }
                // Longer than any name.
                None => "",
            }
        } else {
            host
        };
        if let Some(found) = self.exact.get(host).and_then(&mut f) {
            return Some(found);
        }
        if !self.below.is_empty() {
            let mut rest = host;
            let mut left = labels(host);
            while let Some((_, domain)) = rest.split_once('.') {
                (rest, left) = (domain, left - 1);
                if left <= self.most_labels
                    && let Some(found) = self.below.get(domain).and_then(&mut f)
                {
                    return Some(found);
                }
            }
        }
        self.every.as_ref().and_then(f)
    }
}

fn labels(name: &str) -> usize {
    1 + name.bytes().filter(|byte| *byte == b'.').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(patterns: &[Option<&str>]) -> HostPatterns<String> {
        let mut all = HostPatterns::default();
        for pattern in patterns {
            all.entry(*pattern, || pattern.unwrap_or("every").to_owned());
        }
        all
    }

    fn all_of(patterns: &HostPatterns<String>, host: &str) -> Vec<String> {
        let mut found = Vec::new();
        patterns.find_map(host, |pattern| {
            found.push(pattern.clone());
            None::<()>
        });
        found
    }

    #[test]
    fn the_most_specific_pattern_comes_first() {
        let some =
            patterns(&[Some("*.shop"), Some("api.eu.shop"), None, Some("*.eu.shop"), Some("*.EU.shop.")]);
        for (host, want) in [
            ("api.eu.shop", &["api.eu.shop", "*.eu.shop", "*.shop", "every"][..]),
            ("API.eu.Shop.", &["api.eu.shop", "*.eu.shop", "*.shop", "every"]),
            ("a.b.eu.shop", &["*.eu.shop", "*.shop", "every"]),
            ("eu.shop", &["*.shop", "every"]),
            ("shop", &["every"]),
            ("xeu.shopx", &["every"]),
            ("", &["every"]),
            (".", &["every"]),
            ("..shop", &["*.shop", "every"]),
        ] {
            assert_eq!(all_of(&some, host), want, "{host}");
        }
        assert_eq!(all_of(&some, &"A.".repeat(300)), ["every"]);
        assert_eq!(all_of(&patterns(&[Some("*.shop")]), "shop"), [""; 0]);
    }

    #[test]
    fn nothing_more_is_asked_once_something_is_found() {
        let some = patterns(&[Some("api.shop"), Some("*.shop"), None]);
        let found = some.find_map("api.shop", |pattern| (pattern != "api.shop").then_some(pattern));
        assert_eq!(found.map(String::as_str), Some("*.shop"));
    }
}
