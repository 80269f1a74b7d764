//! The dashboard: one page with its style and scripts, in the binary as they are in `dashboard/`. No build step.
//!
//! It is a program like any other: all it shows it asks for as JSON from the paths that everybody can ask.

/// The page.
pub(super) const PAGE: &str = include_str!("dashboard/index.html");

/// A file that the page loads.
#[derive(Debug)]
pub(super) struct Part {
    path: &'static str,
    pub media_type: &'static str,
    pub text: &'static str,
}

const fn script(path: &'static str, text: &'static str) -> Part {
    Part { path, media_type: "text/javascript; charset=utf-8", text }
}

pub(super) static PARTS: [Part; 12] = [
    Part {
        path: "/dashboard/style.css",
        media_type: "text/css; charset=utf-8",
        text: include_str!("dashboard/style.css"),
    },
    Part {
        path: "/dashboard/icon.svg",
        media_type: "image/svg+xml",
        text: include_str!("dashboard/icon.svg"),
    },
    script("/dashboard/words.js", include_str!("dashboard/words.js")),
    script("/dashboard/charts.js", include_str!("dashboard/charts.js")),
    script("/dashboard/map.js", include_str!("dashboard/map.js")),
    script("/dashboard/troubles.js", include_str!("dashboard/troubles.js")),
    script("/dashboard/upstreams.js", include_str!("dashboard/upstreams.js")),
    script("/dashboard/exchanges.js", include_str!("dashboard/exchanges.js")),
    script("/dashboard/failures.js", include_str!("dashboard/failures.js")),
    script("/dashboard/tap.js", include_str!("dashboard/tap.js")),
    script("/dashboard/certificates.js", include_str!("dashboard/certificates.js")),
    script("/dashboard/app.js", include_str!("dashboard/app.js")),
];

/// The file at `path`.
pub(super) fn part(path: &str) -> Option<&'static Part> {
    PARTS.iter().find(|part| part.path == path)
}
