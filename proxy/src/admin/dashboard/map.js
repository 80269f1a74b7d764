// Who calls whom: callers by identity, this workload, and its upstreams, with lines as wide as their traffic.

import { byId, element, identity, keyed, mark, plural, rate, say, set, share, style } from "./words.js";
import { isPartial } from "./troubles.js";

const SVG = "http://www.w3.org/2000/svg";
/** On each side; of more, the failing and the busiest. */
const SHOWN = 10;
const WIDEST = 6;

function level(figures, troubled) {
  if (troubled === "bad") return "bad";
  if (figures.successShare === null) return figures.openTcpConnections > 0 ? "good" : "idle";
  if (figures.successShare < 0.95) return "bad";
  return figures.successShare < 0.999 || troubled === "fair" ? "fair" : "good";
}

const RANK = { bad: 3, fair: 2, good: 1, idle: 0 };

export class Picture {
  constructor(go) {
    this.go = go;
    this.links = byId("map-links");
    this.sides = { callers: byId("map-callers"), upstreams: byId("map-upstreams") };
    new ResizeObserver(() => this.link()).observe(byId("map-body"));
  }

  show({ traffic, troubles, certificates, history }) {
    if (!traffic) return;
    const own = certificates?.workload?.id;
    say(byId("self-name"), own ? identity(own) : "no identity");
    set(byId("self-name"), "title", own);
    this.figures(history);
    this.drawn = {
      callers: this.side("callers", traffic.callers.map((caller) => ({
        ...caller, key: `${caller.tls} ${caller.peer}`, name: caller.peer ? identity(caller.peer) : "without identity",
        full: caller.peer ?? "plaintext, or no certificate", level: level(caller),
      }))),
      upstreams: this.side("upstreams", traffic.upstreams.map((upstream) => {
        const found = troubles.get(upstream.upstream) ?? [];
        const worst = found.length === 0 ? "good" : found.some((trouble) => trouble.level === "bad") && !isPartial(found) ? "bad" : "fair";
        return { word: isPartial(found) ? `${plural(found.filter((trouble) => trouble.address).length, "endpoint")} out` : undefined, ...upstream, key: upstream.upstream, name: upstream.upstream || "not found", full: upstream.upstream, level: level(upstream, worst) };
      })),
    };
    byId("no-callers").hidden = this.drawn.callers.length > 0;
    byId("no-called").hidden = this.drawn.upstreams.length > 0;
    this.link();
  }

  figures(history) {
    const told = ["inbound", "outbound"].flatMap((direction) => {
      const last = history?.[direction]?.lastMinute;
      if (!last) return [];
      const text = last.requestsPerSecond > 0
        ? `${rate(last.requestsPerSecond)} · ${share(last.successShare)}`
        : "no requests";
      return [[direction === "inbound" ? "in" : "out", text]];
    });
    keyed(byId("self-figures"), told, ([name]) => name, ([name]) => element("div", {}, element("dt", { text: name }), element("dd")),
      (row, [, text]) => say(row.lastChild, text));
  }

  side(name, nodes) {
    nodes.sort((a, b) => RANK[b.level] - RANK[a.level] || Math.round(Math.log2(1 + b.requestsPerSecond)) - Math.round(Math.log2(1 + a.requestsPerSecond))
      || (a.name < b.name ? -1 : 1));
    const shown = nodes.slice(0, SHOWN);
    const rest = nodes.slice(SHOWN);
    if (rest.length > 0) {
      shown.push({
        key: "rest", name: `and ${rest.length} more`, full: "", level: "idle", isRest: true, successShare: null, openTcpConnections: 0,
        requestsPerSecond: rest.reduce((sum, node) => sum + node.requestsPerSecond, 0),
      });
    }
    const most = Math.max(0.001, ...nodes.map((node) => node.requestsPerSecond));
    keyed(this.sides[name], shown, (node) => node.key, (node) => this.make(name, node), (row, node) => {
      const title = row.firstChild;
      const [label, state, figures] = title.children;
      say(label, node.name);
      set(label, "title", node.full);
      const words = { good: "well", fair: "some fail", bad: "failing", idle: "idle" };
      if (node.isRest) style(state, "");
      else mark(state, node.level, node.word ?? words[node.level]);
      say(figures, told(node));
      row.level = node.level;
      row.width = node.requestsPerSecond > 0 ? 1 + (WIDEST - 1) * Math.sqrt(node.requestsPerSecond / most) : 1;
      row.lastChild.style.setProperty("--part", String(Math.sqrt(node.requestsPerSecond / most)));
      style(row, `node ${node.level}`);
    });
    return shown;
  }

  make(name, node) {
    const goes = name === "upstreams" && !node.isRest;
    const label = element(goes ? "a" : "span", { css: "name", ...(goes ? { href: "#upstreams" } : {}) });
    const row = element("li", {}, element("div", {}, label, element("span"), element("span", { css: "figures" })), element("i", { css: "part" }));
    if (goes) {
      label.addEventListener("click", (event) => {
        event.preventDefault();
        this.go(node.key);
      });
    }
    return row;
  }

  /** Lines from the edge of each to the workload between them; on a phone the bars tell the same. */
  link() {
    const box = byId("map-body").getBoundingClientRect();
    const self = byId("map-self").getBoundingClientRect();
    const stacked = [...this.sides.callers.children, ...this.sides.upstreams.children].every((row) => row.getBoundingClientRect().left < self.right && row.getBoundingClientRect().right > self.left);
    const paths = [];
    for (const [name, list] of Object.entries(this.sides)) {
      const rows = [...list.children];
      if (stacked) break;
      rows.forEach((row, place) => {
        const at = row.getBoundingClientRect();
        const y = at.top + at.height / 2 - box.top;
        const to = self.top - box.top + self.height * ((place + 1) / (rows.length + 1));
        const [from, until] = name === "callers" ? [at.right - box.left, self.left - box.left] : [at.left - box.left, self.right - box.left];
        const middle = (from + until) / 2;
        paths.push({ key: `${name} ${place}`, d: `M${from} ${y}C${middle} ${y} ${middle} ${to} ${until} ${to}`, width: row.width ?? 1, level: row.level ?? "idle" });
      });
    }
    set(this.links, "width", box.width);
    set(this.links, "height", box.height);
    keyed(this.links, paths, (path) => path.key, () => document.createElementNS(SVG, "path"), (line, path) => {
      set(line, "d", path.d);
      set(line, "class", path.level);
      set(line, "stroke-width", path.width.toFixed(1));
    });
  }
}

function told(node) {
  const parts = [];
  if (node.requestsPerSecond > 0) parts.push(rate(node.requestsPerSecond));
  if (node.successShare !== null) parts.push(share(node.successShare));
  if (node.openTcpConnections > 0) parts.push(`${plural(node.openTcpConnections, "TCP connection")} open`);
  return parts.length ? parts.join(" · ") : "nothing in the last minute";
}
