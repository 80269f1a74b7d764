// Charts of the last ten minutes: lines on two axes with units, and the values of any moment by pointer or keys.

import { byId, clock, element, figures, milliseconds, rate, say, set, share, shortClock } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 46;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 20;
/** A line goes on over so many moments without a request: at a request a second it would be dots. */
const BRIDGED = 5;

const LATENCY = [
  { key: "p99Ms", label: "p99", css: "p99" },
  { key: "p95Ms", label: "p95", css: "p95" },
  { key: "p50Ms", label: "p50", css: "p50" },
];

/** What each chart shows: of a direction, in what unit, and what stands there when there is nothing. */
const KINDS = [
  {
    name: "rate", title: "Requests", unit: "/s", lines: [{ key: "requests", label: "requests", css: "rate area" }],
    write: rate, least: 1, minute: (last) => [last.requestsPerSecond],
  },
  {
    name: "errors", title: "Errors", unit: "/s", lines: [{ key: "errors", label: "errors", css: "errors area" }],
    write: rate, least: 1, minute: (last) => [last.errorsPerSecond],
    none: "No errors", also: (last) => last.successShare === null ? "" : `${share(last.successShare)} succeed`,
  },
  {
    name: "latency", title: "Latency", unit: " ms", lines: LATENCY, write: milliseconds, least: 1,
    minute: (last) => [last.p99Ms, last.p95Ms, last.p50Ms], also: () => " ",
  },
];

const EMPTY = {
  inbound: "No request has come in for ten minutes. What peers send to this workload appears here.",
  outbound: "No request has gone out for ten minutes. What this workload sends appears here.",
};

function svg(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** The least round number that is not below `value`, and a third or half of it as a step. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const [top, steps] = [[1, 2], [1.5, 3], [2, 2], [3, 3], [4, 2], [5, 2], [6, 3], [8, 2], [10, 2]]
    .find(([top]) => top * power >= value * 0.999) ?? [10, 2];
  return { top: top * power, steps };
}

/** All charts; they point at the same moment. */
export class Charts {
  constructor() {
    this.charts = [];
    this.moment = null;
    const grid = byId("chart-grid");
    for (const direction of ["inbound", "outbound"]) {
      grid.append(element("h3", { text: direction === "inbound" ? "Inbound" : "Outbound" }));
      for (const kind of KINDS) {
        const chart = new Chart(direction, kind, (moment) => this.point(moment));
        this.charts.push(chart);
        grid.append(chart.figure);
      }
    }
    const resized = new ResizeObserver(() => this.draw());
    for (const chart of this.charts) resized.observe(chart.plot);
  }

  show(history) {
    this.history = history;
    this.draw();
  }

  draw() {
    if (!this.history) return;
    for (const chart of this.charts) chart.draw(this.history, this.moment);
  }

  /** A moment is the number of a look, or null for now. */
  point(moment) {
    if (moment === this.moment) return;
    this.moment = moment;
    this.draw();
  }
}

class Chart {
  constructor(direction, kind, point) {
    Object.assign(this, { direction, kind, point });
    const name = `${direction === "inbound" ? "Inbound" : "Outbound"} ${kind.title.toLowerCase()}`;
    this.readout = kind.lines.map((line) => element("span", { css: `value ${line.css}` }));
    this.when = element("span", { css: "when" });
    const title = element("figcaption", {}, element("span", { css: "title", text: kind.title }), ...this.readout, this.when);
    this.plot = element("div", {
      css: "plot", id: `${kind.name}-${direction}`, tabindex: "0", role: "slider", "aria-label": `${name}, by time`,
    });
    this.svg = svg("svg", { "aria-hidden": "true" });
    this.grid = svg("g", { class: "grid" });
    this.lines = kind.lines.map((line) => svg("path", { class: `line ${line.css}` }));
    this.areas = kind.lines.filter((line) => line.css.endsWith("area")).map((line) => svg("path", { class: `fill ${line.css}` }));
    this.cross = svg("line", { class: "cross" });
    this.dots = kind.lines.map((line) => svg("circle", { class: `dot ${line.css}`, r: 3 }));
    this.svg.append(this.grid, ...this.areas, ...this.lines, this.cross, ...this.dots);
    this.empty = element("p", { css: "empty" });
    this.plot.append(this.svg, this.empty);
    this.figure = element("figure", { css: `chart ${kind.name}` }, title, this.plot);
    this.plot.addEventListener("pointermove", (event) => this.follow(event));
    this.plot.addEventListener("pointerdown", (event) => this.follow(event));
    this.plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") this.point(null); });
    this.plot.addEventListener("blur", () => this.point(null));
    this.plot.addEventListener("keydown", (event) => this.step(event));
  }

  follow(event) {
    if (!this.history) return;
    const { width, left } = this.plot.getBoundingClientRect();
    const part = (event.clientX - left - LEFT) / (width - LEFT - RIGHT);
    const { now, samples } = this.history;
    this.point(Math.round(Math.min(Math.max(now - samples + part * samples, this.first()), now)));
  }

  step(event) {
    if (!this.history) return;
    const { now } = this.history;
    const at = this.moment ?? now;
    const to = {
      ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1,
      PageUp: at + 15, PageDown: at - 15, Home: this.first(), End: now, Escape: null,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.point(to === null ? null : Math.min(Math.max(to, this.first()), now));
  }

  first() {
    return Math.max(1, this.history.now - this.history.samples + 1);
  }

  /** Of a look, in the unit of the axis. */
  value(course, key, number) {
    const value = course[key][number - this.history.first];
    if (value === null || value === undefined) return null;
    return this.kind.name === "latency" ? value : value / this.history.stepSeconds;
  }

  draw(history, moment) {
    const { width, height } = this.plot.getBoundingClientRect();
    this.history = history;
    this.moment = moment;
    const course = history[this.direction];
    const { now, samples, first } = history;
    this.read(course, moment);
    if (width < 80) return;
    const x = (number) => LEFT + ((number - now + samples) / samples) * (width - LEFT - RIGHT);
    const bottom = height - BOTTOM;
    let most = 0;
    for (const { key } of this.kind.lines) for (const value of course[key]) most = Math.max(most, value ?? 0);
    const hasRequests = course.requests.some((count) => count > 0);
    if (this.kind.name !== "latency") most /= history.stepSeconds;
    const { top, steps } = roundUp(Math.max(most, this.kind.least));
    const y = (value) => bottom - (value / top) * (bottom - TOP);
    set(this.svg, "width", width);
    set(this.svg, "height", height);
    this.axes({ width, height, bottom, x, y, top, steps });
    say(this.empty, hasRequests ? (most === 0 ? this.kind.none : "") : EMPTY[this.direction]);
    this.kind.lines.forEach(({ key }, place) => {
      const path = this.path(course, key, Math.max(first, now - samples + 1), now, x, y, bottom);
      const isDrawn = hasRequests && most > 0;
      set(this.lines[place], "d", isDrawn ? path.line : "");
      if (this.areas[place]) set(this.areas[place], "d", isDrawn ? path.area : "");
      const value = moment === null ? null : this.value(course, key, moment);
      set(this.dots[place], "visibility", value === null ? "hidden" : "visible");
      if (value !== null) {
        set(this.dots[place], "cx", x(moment));
        set(this.dots[place], "cy", y(value));
      }
    });
    set(this.cross, "visibility", moment === null ? "hidden" : "visible");
    if (moment !== null) {
      for (const [name, at] of [["x1", x(moment)], ["x2", x(moment)], ["y1", TOP], ["y2", bottom]]) set(this.cross, name, at);
    }
  }

  path(course, key, from, to, x, y, bottom) {
    const parts = [];
    const area = [];
    let last = null;
    for (let number = from; number <= to; number += 1) {
      const value = this.value(course, key, number);
      if (value === null) continue;
      const at = `${x(number).toFixed(1)} ${y(value).toFixed(1)}`;
      // A point alone is a line without length: its round ends show.
      parts.push(last !== null && number - last <= BRIDGED ? `L${at}` : `M${at}h.01`);
      area.push(`L${at}`);
      last = number;
    }
    const filled = area.length > 1 ? `M${x(from).toFixed(1)} ${bottom}${area.join("")}L${x(to).toFixed(1)} ${bottom}Z` : "";
    return { line: parts.join(""), area: filled };
  }

  axes({ width, height, bottom, x, y, top, steps }) {
    const { started, now, samples, stepSeconds } = this.history;
    const key = [width, height, top, now].join();
    if (key === this.axesKey) return;
    this.axesKey = key;
    const parts = [];
    for (let step = 0; step <= steps; step += 1) {
      const value = (top * step) / steps;
      const unit = this.kind.name === "latency" ? milliseconds(value) : `${figures(value)}${value ? this.kind.unit : ""}`;
      parts.push(svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: step ? "" : "base" }));
      const text = svg("text", { x: LEFT - 6, y: y(value) + 3.5, "text-anchor": "end" });
      text.textContent = value === 0 ? "0" : unit;
      parts.push(text);
    }
    const time = (number) => started + number * stepSeconds * 1000;
    const every = (width < 260 ? 5 : 2) * 60_000;
    for (let at = Math.ceil(time(now - samples) / every) * every; at <= time(now); at += every) {
      const place = x((at - started) / 1000 / stepSeconds);
      if (place < LEFT + 12 || place > width - RIGHT - 12) continue;
      parts.push(svg("line", { x1: place, x2: place, y1: bottom, y2: bottom + 4, class: "base" }));
      const text = svg("text", { x: place, y: height - 5, "text-anchor": "middle" });
      text.textContent = shortClock(at);
      parts.push(text);
    }
    this.grid.replaceChildren(...parts);
  }

  /** The values of the moment that is pointed at, or of the last minute. */
  read(course, moment) {
    const { kind, history } = this;
    const values = moment === null
      ? kind.minute(course.lastMinute)
      : kind.lines.map(({ key }) => this.value(course, key, moment));
    const many = kind.lines.length > 1;
    const told = values.map((value, place) => (many ? `${kind.lines[place].label} ` : "") + kind.write(value));
    told.forEach((text, place) => say(this.readout[place], text));
    const at = history.started + (moment ?? history.now) * history.stepSeconds * 1000;
    const also = moment === null ? kind.also?.(course.lastMinute) : "";
    say(this.when, moment === null ? also || "last minute" : clock(at));
    set(this.plot, "aria-valuemin", this.first());
    set(this.plot, "aria-valuemax", history.now);
    set(this.plot, "aria-valuenow", moment ?? history.now);
    set(this.plot, "aria-valuetext", `${moment === null ? "last minute" : clock(at)}: ${told.join(", ")}`);
  }
}
