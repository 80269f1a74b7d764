"""Looks at the dashboard as a person does: dashboard.py CHECK URL [arguments]. Says what it did not find, and fails."""

import json
import re
import sys

from browser import Browser

DATA = """document.querySelector('%s .line').getAttribute('d') ?? ''"""
HOSTILE = "<img src=x onerror=alert(1)>"


def no_harm(browser, url):
    """Nothing was logged or refused by the page's policy, and nothing was asked of anybody else."""
    origin = url.rstrip("/")
    foreign = [asked for asked in browser.requests if not asked.startswith(origin + "/") and asked != "about:blank"]
    assert not foreign, f"the page asked others: {foreign}"
    assert not browser.messages, f"the page logged: {browser.messages}"


def fits(browser):
    wide = browser.evaluate(
        "[innerWidth, document.documentElement.scrollWidth, [...document.querySelectorAll('main *, header *, footer *')]"
        ".filter(one => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.away')).slice(0, 5)"
        ".map(one => `${one.tagName}.${one.className} ${one.textContent.slice(0, 40)}`)]"
    )
    assert wide[1] <= wide[0] and not wide[2], f"wider than the window: {wide}"


def charts(browser, url):
    browser.open(url)
    browser.wait("requests are drawn", DATA % "#rate-outbound" + ".includes('L')")
    before = browser.evaluate(DATA % "#rate-outbound")
    browser.wait("the chart moves", f"{DATA % '#rate-outbound'} !== {json.dumps(before)}")
    rate = browser.evaluate("document.querySelector('#rate-outbound').closest('figure').querySelector('.value').textContent")
    assert re.fullmatch(r"[\d.]+( k)?/s", rate) and rate != "0/s", rate
    latency = browser.evaluate("document.querySelector('#latency-outbound').closest('figure').innerText")
    assert re.search(r"p99 [\d.]+ ms", latency), latency
    axes = browser.evaluate("document.querySelector('#latency-outbound svg').textContent")
    assert " ms" in axes and re.search(r"\d\d:\d\d", axes), axes
    # Keys read a moment, and give the value as words.
    browser.evaluate("document.querySelector('#rate-outbound').focus()")
    for key in ("ArrowLeft", "ArrowLeft"):
        browser.press(key)
    told = browser.evaluate("document.querySelector('#rate-outbound').getAttribute('aria-valuetext')")
    assert re.fullmatch(r"\d\d:\d\d:\d\d: [\d.<]+( k)?/s", told), told
    assert browser.evaluate("document.querySelector('#latency-outbound .cross').getAttribute('visibility')") == "visible"
    browser.press("Escape")
    browser.wait("now is shown again", "document.querySelector('#rate-outbound').getAttribute('aria-valuetext').startsWith('last minute')")
    # And so does the pointer.
    box = browser.evaluate("(() => { const { x, y, width, height } = document.querySelector('#errors-outbound').getBoundingClientRect(); return [x + width - 20, y + height / 2]; })()")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    browser.wait("the pointer reads a moment", "document.querySelector('#errors-outbound .cross').getAttribute('visibility') === 'visible'")
    browser.wait("the picture shows who is called", "document.querySelectorAll('#map-links path').length >= 1 && document.querySelector('#map-upstreams .node').innerText.includes('/s')")


def failing(browser, url, upstream, endpoint, reason):
    browser.open(url)
    browser.wait("the verdict", f"document.getElementById('sentence').textContent === {json.dumps(f'{endpoint} of {upstream} is out')}")
    told = browser.evaluate("document.querySelector('#troubles li').innerText")
    for words in ("out", upstream, endpoint, reason):
        assert words in told, f"{words} is not in: {told}"
    row = "[...document.querySelectorAll('#upstream-table > tbody')].find(one => one.name === %s)" % json.dumps(upstream)
    assert browser.evaluate(f"{row} === document.querySelector('#upstream-table > tbody')"), "what fails comes first"
    detail = browser.wait("its endpoints are open", f"{row}.querySelector('.endpoints')?.innerText")
    assert endpoint in detail.splitlines()[1 if "State" in detail.splitlines()[0] else 0] or detail.index(endpoint) < 200, detail
    assert browser.evaluate(f"getComputedStyle({row}.querySelector('.state'), '::before').content").startswith('"■'), "a shape, not a colour alone"
    live = browser.evaluate("document.getElementById('verdict-text').getAttribute('aria-live')")
    assert live == "polite"


def hostile(browser, url):
    """Markup in whatever comes from the network is shown as text: a proxy's answers are made up here that have it everywhere."""
    exchange = {
        "time": "2026-01-01T00:00:00Z", "direction": "inbound", "code": 500, "duration_ms": 1,
        **{name: HOSTILE for name in ("method", "path", "authority", "upstream", "endpoint", "peer", "client", "why", "proxy_status")},
    }
    endpoint = {
        "address": HOSTILE, "state": "ejected", "why": HOSTILE, "standing": HOSTILE, "security": HOSTILE, "sinceSeconds": 1, "share": 0,
        "inFlight": 0, "latencyMs": 1, "lastError": {"what": HOSTILE, "secondsAgo": 1},
    }
    upstream = {
        "endpoints": [endpoint], "source": HOSTILE, "ageSeconds": 1, "lastError": HOSTILE, "connections": 0, "pendingRequests": 0,
        "breaker": {"state": "open", "why": HOSTILE}, "retryBudget": {"recentRetries": 1, "allowedRetries": 1},
    }
    figures = {"requestsPerSecond": 1, "errorsPerSecond": 0, "successShare": 1, "p50Ms": 1, "p95Ms": 1, "p99Ms": 1, "openTcpConnections": 1}
    browser.answer({
        "/failures": json.dumps({"failures": [exchange]}),
        "/upstreams": json.dumps({HOSTILE: upstream}),
        "/traffic": json.dumps({"callers": [{**figures, "peer": HOSTILE, "tls": HOSTILE}], "upstreams": [{**figures, "upstream": HOSTILE}]}),
        "/certificates": json.dumps({"workload": {"id": HOSTILE, "notBefore": 0, "notAfter": 9e9}, "roots": [{"subject": HOSTILE, "notAfter": 9e9}], "lastError": HOSTILE}),
        "/tap": json.dumps(exchange) + "\n",
    })
    browser.open(url)
    browser.evaluate("document.querySelector('#tap-button').click()")
    for place in ("#workload", "#troubles", "#map-callers", "#map-upstreams", "#upstream-table", ".endpoints", "#failure-groups", "#failure-table", "#tap-table", "#certificate-list"):
        browser.wait(f"{place} shows it", "document.querySelector('%s').textContent.includes(%s)" % (place, json.dumps(HOSTILE)))
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    # And if a script of the page ever tried, the browser would refuse.
    refused = browser.evaluate("(() => { try { document.createElement('p').innerHTML = '<b>'; return false; } catch { return true; } })()")
    assert refused, "the policy asks for trusted types"
    browser.messages = [one for one in browser.messages if "TrustedHTML" not in one]


def tap(browser, url):
    """Shows requests as they end by filter, stops, and explains a wrong filter."""
    browser.open(url)
    browser.evaluate("document.querySelector('#tap-form [name=path]').value = '/tapped'; document.querySelector('#tap-button').click()")
    browser.wait("requests come", "document.querySelectorAll('#tap-table tbody tr').length >= 3")
    assert browser.evaluate("document.querySelector('#tap-table tbody tr').innerText.includes('/tapped')")
    told = browser.evaluate("document.getElementById('tap-state').textContent")
    assert told.startswith("Running: "), told
    browser.evaluate("document.querySelector('#tap-button').click()")
    browser.wait("the tap stops", "document.getElementById('tap-state').textContent.startsWith('Stopped.')")
    browser.evaluate("document.querySelector('#tap-form [name=path]').value = ''; document.querySelector('#tap-form [name=status]').value = 'many'; document.querySelector('#tap-button').click()")
    browser.wait("a wrong filter is explained", "document.getElementById('tap-state').textContent.includes('status=`many` is wrong')")
    # That answer was asked for.
    browser.messages = [one for one in browser.messages if "400" not in one]


def keyboard(browser, url):
    """Tab reaches all there is to use, shows where it is, and comes out at the end."""
    browser.open(url)
    browser.wait("all is there", "document.querySelectorAll('#upstream-table > tbody').length && document.querySelectorAll('#pages a').length")
    all_of_them = set(browser.evaluate(
        "(() => { let number = 0; return [...document.querySelectorAll('a[href], button, input, select, [tabindex=\"0\"]')]"
        ".filter(one => one.checkVisibility({ visibilityProperty: true })).map(one => one.dataset.number = String(number++)); })()"
    ))
    reached, hidden = set(), []
    for _ in range(3 * len(all_of_them)):
        browser.press("Tab")
        number, ring = browser.evaluate(
            "[document.activeElement.dataset.number ?? null, getComputedStyle(document.activeElement).outlineStyle]"
        )
        if number is None and reached:
            break
        if number is not None:
            reached.add(number)
            if ring == "none":
                hidden.append(number)
    else:
        raise AssertionError("Tab never comes out of the page")
    missing = [browser.evaluate(f"document.querySelector('[data-number=\"{number}\"]').outerHTML") for number in all_of_them - reached]
    assert not missing, f"not reached by Tab: {missing}"
    assert not hidden, f"the focus can't be seen on {hidden}"
    # The first is the way past the header; Enter sorts and opens.
    browser.open(url)
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.className") == "skip"
    browser.wait("rows", "document.querySelectorAll('#upstream-table > tbody').length")
    browser.evaluate("document.querySelector('th[data-sort=name] button').focus()")
    browser.press("Enter")
    assert browser.evaluate("document.querySelector('th[data-sort=name]').getAttribute('aria-sort')") == "ascending"
    browser.evaluate("document.querySelector('.opener').focus()")
    before = browser.evaluate("document.querySelector('.opener').getAttribute('aria-expanded')")
    browser.press(" ")
    assert browser.evaluate("document.querySelector('.opener').getAttribute('aria-expanded')") != before
    headings = browser.evaluate("[...document.querySelectorAll('h1, h2')].map(one => one.tagName)")
    assert headings.count("H1") == 1 and headings.count("H2") >= 7, headings
    nameless = browser.evaluate(
        "[...document.querySelectorAll('button, input, select, [role=slider]')].filter(one => one.checkVisibility() && !(one.textContent.trim() || one.labels?.length || one.ariaLabel)).length"
    )
    assert nameless == 0


def looks(browser, url):
    """At a phone's width and a desk's, in light and dark: nothing sticks out, and text can be read."""
    seen = set()
    for width in (360, 768, 1440):
        for scheme in ("light", "dark"):
            browser.open(url, width, 800, scheme)
            browser.wait("rows", "document.querySelectorAll('#upstream-table > tbody').length && document.querySelectorAll('#certificate-list li').length")
            browser.wait("the charts are drawn", "document.querySelectorAll('#rate-outbound .grid text').length")
            fits(browser)
            seen.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
            ratios = browser.evaluate(CONTRAST)
            poor = [one for one in ratios if one[0] < 4.5]
            assert not poor, f"poor contrast in {scheme}: {poor[:5]}"
    assert len(seen) == 2, f"light and dark differ: {seen}"


# WCAG 2's contrast of each text with what is behind it.
CONTRAST = """(() => {
  const light = (colour) => {
    const [r, g, b] = colour.map((value) => value / 255).map((value) => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('body *')]
    .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()) && node.checkVisibility({ visibilityProperty: true }))
    .map((node) => {
      const style = getComputedStyle(node);
      const front = node instanceof SVGElement ? style.fill : style.color;
      const [a, b] = [light(parts(front).slice(0, 3)), light(behind(node))].sort((x, y) => y - x);
      return [(a + .05) / (b + .05), `${node.tagName}.${node.getAttribute('class')} ${node.textContent.slice(0, 30)}`];
    });
})()"""


def many(browser, url):
    """With 500 upstreams: found by a filter, and an update that changes nothing changes nothing on the page."""
    browser.open(url)
    browser.wait("all are counted", "document.getElementById('upstream-count').textContent === '500'")
    assert browser.evaluate("document.querySelectorAll('#upstream-table > tbody').length") <= 40
    browser.evaluate("document.getElementById('all-upstreams').click()")
    assert browser.evaluate("document.querySelectorAll('#upstream-table > tbody').length") == 500
    browser.answer({
        path: browser.evaluate(f"fetch('{path}', {{ headers: {{ accept: 'application/json' }} }}).then((answer) => answer.text())")
        for path in ("/upstreams", "/history", "/traffic")
    })
    browser.evaluate("new Promise((done) => setTimeout(done, 5000))")
    changes = browser.evaluate(
        "new Promise((done) => { let count = 0; const seen = new MutationObserver((all) => count += all.length);"
        "seen.observe(document.getElementById('upstream-table'), { subtree: true, childList: true, attributes: true, characterData: true });"
        "setTimeout(() => { seen.disconnect(); done(count); }, 6000); })"
    )
    assert changes == 0, f"{changes} changes of a table in which nothing happens"
    browser.evaluate("document.getElementById('upstream-filter').focus()")
    browser.type("service-417")
    browser.wait("the filter finds it", "document.querySelectorAll('#upstream-table > tbody').length === 1")
    assert browser.evaluate("document.querySelector('.opener').textContent") == "service-417"
    fits(browser)


def gone(browser, url):
    """Says that the proxy is gone, and recovers: the test stops it when told so, and starts it again."""
    browser.open(url)
    browser.wait("it is live", "document.getElementById('live').textContent.startsWith('live')")
    say("live")
    browser.wait("it says that the proxy is gone", "!document.getElementById('gone').hidden && document.getElementById('gone').textContent.includes('does not answer')")
    say("gone")
    browser.wait("it recovers", "document.getElementById('gone').hidden && document.getElementById('live').textContent.startsWith('live')")
    # Requests that nobody answered are what this is about.
    browser.messages = [one for one in browser.messages if "net::ERR" not in one]


def empty(browser, url):
    """Where nothing has happened it says what will appear."""
    browser.open(url)
    browser.wait("the charts say so", "document.querySelector('#rate-inbound .empty').textContent.startsWith('No request has come in')")
    for name in ("no-callers", "no-called", "no-failures", "no-upstreams"):
        browser.wait(f"{name} is explained", f"!document.getElementById('{name}').hidden && document.getElementById('{name}').textContent.length > 20")


def say(word):
    print(word, flush=True)


def main(check, url, *arguments):
    with Browser() as browser:
        globals()[check](browser, url, *arguments)
        no_harm(browser, url)
    say("seen")


if __name__ == "__main__":
    main(*sys.argv[1:])
