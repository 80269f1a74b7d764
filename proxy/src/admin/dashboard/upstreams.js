// The table of upstreams, each with its endpoints below it when it is opened.

import { byId, element, keyed, mark, milliseconds, plural, rate, say, set, share, span, style } from "./words.js";
import { isOut, isPartial, standing, why, worst } from "./troubles.js";

/** Rows before a person asks for all: a mesh may have hundreds. */
const SHOWN = 40;
/** Troubled upstreams that open by themselves. */
const OPENED = 3;
const SVG = "http://www.w3.org/2000/svg";
const RANK = { bad: 3, fair: 2, good: 1, idle: 0 };
const BREAKERS = { closed: "good", open: "bad", "half-open": "fair" };

const HEADS = ["State", "Address", "Why", "For", "Share", "In flight", "Latency", "Last error", "Connection"];

/** By what each column is sorted; the largest first, but names. */
const SORTS = {
  // By magnitude, so that rows of about the same rate don't change places all the time.
  state: (row) => RANK[row.level] * 1000 + Math.round(Math.log2(1 + (row.last?.requestsPerSecond ?? 0))),
  name: (row) => row.name,
  rate: (row) => row.last?.requestsPerSecond ?? -1,
  success: (row) => row.last?.successShare ?? 2,
  p50: (row) => row.last?.p50Ms ?? -1,
  p99: (row) => row.last?.p99Ms ?? -1,
  endpoints: (row) => row.present.length - row.out.length,
  breaker: (row) => RANK[BREAKERS[row.upstream.breaker?.state]] ?? 0,
};

export class Upstreams {
  constructor() {
    this.table = byId("upstream-table");
    this.filter = byId("upstream-filter");
    this.only = byId("only-troubled");
    this.all = false;
    this.sort = { by: "state", up: false };
    /** Whether a person opened or closed it; else trouble decides. */
    this.chosen = new Map();
    for (const control of [this.filter, this.only]) control.addEventListener("input", () => this.draw(true));
    for (const head of this.table.querySelectorAll("th[data-sort]")) {
      head.firstElementChild.addEventListener("click", () => this.sortBy(head.dataset.sort));
    }
    byId("all-upstreams").addEventListener("click", () => {
      this.all = !this.all;
      this.draw(true);
    });
  }

  sortBy(by) {
    const up = this.sort.by === by ? !this.sort.up : by === "name" || by === "success";
    this.sort = { by, up };
    for (const head of this.table.querySelectorAll("th[data-sort]")) {
      set(head, "aria-sort", head.dataset.sort === by ? (up ? "ascending" : "descending") : null);
    }
    this.draw(true);
  }

  /** Opens one, shows it and goes there. */
  go(name) {
    this.chosen.set(name, true);
    this.filter.value = name;
    this.only.checked = false;
    this.draw(true);
    const row = this.table.kept?.get(name);
    if (!row) return;
    row.scrollIntoView({ block: "center" });
    row.button.focus({ preventScroll: true });
  }

  show({ upstreams, history, traffic, troubles }) {
    if (!upstreams) return;
    const carried = new Set(traffic?.upstreams.filter((one) => one.openTcpConnections > 0).map((one) => one.upstream));
    const seen = new Map((history?.upstreams ?? []).map((one) => [one.name, one]));
    this.rows = Object.entries(upstreams).map(([name, upstream]) => {
      const present = upstream.endpoints.filter((endpoint) => endpoint.state !== "draining");
      const last = seen.get(name)?.lastMinute;
      const found = troubles.get(name) ?? [];
      const level = found.length ? worst(found) : last || carried.has(name) ? "good" : "idle";
      return { name, upstream, present, out: present.filter(isOut), last, outline: seen.get(name)?.outline, level, isPartial: isPartial(found) };
    });
    const troubled = this.rows.filter((row) => RANK[row.level] > RANK.good).sort((a, b) => RANK[b.level] - RANK[a.level]);
    this.open = new Set(troubled.slice(0, OPENED).map((row) => row.name));
    this.draw(false);
  }

  draw(asked) {
    if (!this.rows) return;
    const text = this.filter.value.trim().toLowerCase();
    const matches = (row) => (!this.only.checked || row.level === "bad" || row.level === "fair")
      && (!text || row.name.toLowerCase().includes(text) || row.upstream.endpoints.some((endpoint) => endpoint.address.includes(text)));
    const found = this.rows.filter(matches);
    const by = SORTS[this.sort.by];
    const sign = this.sort.up ? 1 : -1;
    found.sort((a, b) => {
      const [x, y] = [by(a), by(b)];
      return x === y ? (a.name < b.name ? -1 : 1) : (x < y ? -sign : sign);
    });
    const shown = this.all ? found : found.slice(0, SHOWN);
    // Nobody's row is moved away from under the pointer or the focus.
    const inUse = !asked && (this.table.querySelector("tbody:hover") || this.table.querySelector("tbody:focus-within"));
    keyed(this.table, shown, (row) => row.name, () => this.make(), (body, row) => this.fill(body, row), !inUse);
    const total = this.rows.length;
    say(byId("upstream-count"), found.length === total ? String(total) : `${found.length} of ${total}`);
    this.table.hidden = shown.length === 0;
    const none = byId("no-upstreams");
    none.hidden = shown.length > 0;
    say(none, total === 0
      ? "No upstream yet. One appears when the workload first calls it, or when the config names it."
      : this.only.checked && !text ? "None is in trouble." : "None matches the filter.");
    const more = byId("all-upstreams");
    more.hidden = found.length <= SHOWN;
    say(more, this.all ? `Show the first ${SHOWN}` : `Show all ${found.length}`);
  }

  make() {
    const cell = (css, label) => element("td", { css, "data-label": label });
    const button = element("button", { type: "button", css: "opener" });
    const row = element("tr", {},
      element("td", { css: "state-cell" }, element("span")),
      element("th", { scope: "row" }, button),
      cell("number", "Requests"), cell("number", "Success"), cell("number", "p50"), cell("number", "p99"),
      cell("number", "Endpoints in"), element("td", { "data-label": "Breaker" }, element("span")),
      element("td", { css: "outline", "data-label": "Ten minutes" }, outline()));
    const body = element("tbody", {}, row);
    body.button = button;
    button.addEventListener("click", () => {
      this.chosen.set(body.name, button.getAttribute("aria-expanded") !== "true");
      this.draw(true);
    });
    return body;
  }

  fill(body, row) {
    body.name = row.name;
    const [state, , requests, success, p50, p99, endpoints, breaker, drawn] = body.firstChild.children;
    const words = { bad: "failing", fair: "look", good: "well", idle: "idle" };
    mark(state.firstChild, row.level, row.isPartial ? `${row.out.length} out` : words[row.level]);
    style(body, row.last ? "" : "resting");
    say(body.button, row.name);
    say(requests, row.last ? rate(row.last.requestsPerSecond) : "–");
    say(success, share(row.last?.successShare));
    say(p50, milliseconds(row.last?.p50Ms));
    say(p99, milliseconds(row.last?.p99Ms));
    say(endpoints, `${row.present.length - row.out.length} of ${row.present.length}`);
    style(endpoints, row.out.length || (!row.present.length && row.level === "bad") ? "number bad" : "number");
    const its = row.upstream.breaker?.state ?? "off";
    if (BREAKERS[its]) mark(breaker.firstChild, BREAKERS[its], its);
    else {
      style(breaker.firstChild, "quiet");
      say(breaker.firstChild, its);
    }
    drawOutline(drawn.firstChild, row.outline);
    const open = this.chosen.get(row.name) ?? this.open.has(row.name);
    set(body.button, "aria-expanded", open);
    this.detail(body, row, open);
  }

  detail(body, row, open) {
    if (!open) {
      body.lastRow?.remove();
      body.lastRow = null;
      return;
    }
    if (!body.lastRow) {
      const heads = HEADS.map((text) => element("th", { scope: "col", text }));
      const list = element("tbody");
      const table = element("table", { css: "endpoints" }, element("thead", {}, element("tr", {}, ...heads)), list);
      const facts = element("p", { css: "quiet" });
      body.lastRow = element("tr", { css: "detail" }, element("td", { colspan: "9" }, facts, table));
      body.append(body.lastRow);
    }
    const [facts, table] = body.lastRow.firstChild.children;
    say(facts, describe(row.upstream));
    const endpoints = [...row.upstream.endpoints].sort((a, b) => RANK[standing(b).level] - RANK[standing(a).level] || (a.address < b.address ? -1 : 1));
    const make = () => element("tr", {}, element("td", { css: "state-cell" }, element("span")),
      ...HEADS.slice(1).map((label) => element("td", { "data-label": label })));
    keyed(table.tBodies[0], endpoints, (endpoint) => endpoint.address, make, (line, endpoint) => {
      const { level, word } = standing(endpoint);
      mark(line.firstChild.firstChild, level, word);
      const last = endpoint.lastError;
      const told = [
        endpoint.address, why(endpoint), endpoint.sinceSeconds === null ? "–" : span(endpoint.sinceSeconds),
        endpoint.share === undefined ? "–" : share(endpoint.share), String(endpoint.inFlight),
        endpoint.latencyMs ? milliseconds(endpoint.latencyMs) : "–",
        last ? `${last.what}, ${span(last.secondsAgo)} ago` : "none", endpoint.security ?? "–",
      ];
      told.forEach((text, place) => say(line.children[place + 1], text));
    });
    table.hidden = endpoints.length === 0;
  }
}

function describe(upstream) {
  const parts = [];
  if (upstream.source) parts.push(`from ${upstream.source}${upstream.ageSeconds === null ? "" : `, ${span(upstream.ageSeconds)} ago`}`);
  parts.push(plural(upstream.connections, "connection"));
  if (upstream.pendingRequests) parts.push(`${plural(upstream.pendingRequests, "request")} waiting`);
  const budget = upstream.retryBudget;
  if (budget) parts.push(`${plural(budget.recentRetries, "retry", "retries")} of ${budget.allowedRetries} allowed`);
  if (upstream.breaker?.why) parts.push(`breaker: ${upstream.breaker.why}`);
  if (upstream.lastError) parts.push(`discovery: ${upstream.lastError}`);
  return parts.join("  ·  ");
}

function outline() {
  const drawn = document.createElementNS(SVG, "svg");
  for (const [name, value] of [["viewBox", "0 0 100 22"], ["preserveAspectRatio", "none"], ["aria-hidden", "true"]]) drawn.setAttribute(name, value);
  for (const css of ["rate", "errors"]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", css);
    drawn.append(path);
  }
  return drawn;
}

/** Requests as columns, the failed ones at their feet. */
function drawOutline(drawn, of) {
  const most = Math.max(1, ...(of?.requests ?? []));
  const columns = (values, least) => values.map((value, place) => {
    if (!value) return "";
    const height = Math.max(least, (value / most) * 22);
    return `M${place * 5 + 0.5} 22v${(-height).toFixed(1)}h4v${height.toFixed(1)}z`;
  }).join("");
  set(drawn.firstChild, "d", columns(of?.requests ?? [], 1));
  set(drawn.lastChild, "d", columns(of?.errors ?? [], 3));
}
