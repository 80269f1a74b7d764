// What is wrong, worst first: the one place that decides it, for the verdict, the table and the picture alike.

import { byId, element, keyed, mark, milliseconds, plural, rate, say, SHAPES, share, span, style } from "./words.js";

/** Shown before a person asks for the rest. */
const SHOWN = 6;
/** An endpoint's failure is news for so long. */
const RECENT_SECONDS = 60;
/** From this share of errors on, an upstream is in trouble; below, it is worth a look. */
const BAD_SHARE = 0.05;
const WORTH_A_LOOK = 0.001;
const DAY = 86_400;

const RANK = { bad: 2, fair: 1 };

/** Whether an endpoint gets requests, as one of the levels and a word. */
export function standing(endpoint) {
  const state = endpoint.state ?? (endpoint.standing?.startsWith("out") ? "out" : "healthy");
  if (state === "healthy") {
    return failedLately(endpoint) ? { level: "fair", word: "in, failing" } : { level: "good", word: "in" };
  }
  if (state === "draining") return { level: "idle", word: "leaving" };
  if (state === "slow start") return { level: "good", word: "slow start" };
  if (state === "panic") return { level: "bad", word: "panic" };
  return { level: "bad", word: `out, ${state}` };
}

export function isOut(endpoint) {
  return ["ejected", "unhealthy", "panic", "out"].includes(endpoint.state ?? "") || endpoint.standing?.startsWith("out");
}

export function why(endpoint) {
  if (standing(endpoint).level === "fair") return "fails now and then, not often enough in a row to be taken out";
  return endpoint.why ?? endpoint.standing ?? "";
}

function failedLately(endpoint) {
  return (endpoint.lastError?.secondsAgo ?? Infinity) <= RECENT_SECONDS;
}

/** All troubles of one upstream; `lastMinute` is what /history knows of it. */
export function ofUpstream(name, upstream, lastMinute) {
  const found = [];
  const add = (level, what, reason, since, address) => found.push({ level, who: name, upstream: name, what, why: reason, since, address });
  const present = upstream.endpoints.filter((endpoint) => endpoint.state !== "draining");
  const out = present.filter(isOut);
  const breaker = upstream.breaker ?? {};
  if (breaker.state === "open") {
    const next = breaker.nextProbeInSeconds ?? breaker.openForSeconds;
    add("bad", "breaker open: every request is refused", `${breaker.why}; next probe in ${span(next)}`, breaker.sinceSeconds);
  } else if (breaker.state === "half-open") {
    add("fair", "breaker half-open: one probe decides", breaker.why, breaker.sinceSeconds);
  }
  // An address that nobody calls, as one that stands for a service, may well have none.
  if (present.length === 0 && (upstream.lastError || lastMinute?.requestsPerSecond > 0)) add("bad", "no endpoint", upstream.lastError ?? "discovery names none");
  else if (out.length === present.length && out.length > 1) add("bad", `all ${out.length} endpoints are out`, "see each below");
  for (const endpoint of out) {
    const last = endpoint.lastError ? `; last of all ${endpoint.lastError.what}` : "";
    add("bad", `${endpoint.address} is ${standing(endpoint).word}`, why(endpoint) + last, endpoint.sinceSeconds, endpoint.address);
  }
  for (const endpoint of present) {
    if (isOut(endpoint) || !failedLately(endpoint)) continue;
    const { what, secondsAgo } = endpoint.lastError;
    add("fair", `${endpoint.address} is in, and fails now and then`, `${what}, ${span(secondsAgo)} ago`);
  }
  const errors = lastMinute && lastMinute.successShare !== null ? 1 - lastMinute.successShare : 0;
  if (errors >= WORTH_A_LOOK) {
    const level = errors >= BAD_SHARE ? "bad" : "fair";
    add(level, `${share(lastMinute.successShare)} succeed`, `${rate(lastMinute.errorsPerSecond)} of ${rate(lastMinute.requestsPerSecond)} failed in the last minute`);
  }
  const budget = upstream.retryBudget;
  if (budget && budget.recentRetries > 0 && budget.recentRetries >= budget.allowedRetries) {
    add("fair", "retry budget used up", `${budget.recentRetries} retries, ${budget.allowedRetries} allowed: more failures reach callers`);
  }
  if (upstream.pendingRequests > 0) add("fair", `${plural(upstream.pendingRequests, "request")} wait for a connection`, `${plural(upstream.connections, "connection")} in the pool`);
  if (upstream.lastError && present.length > 0) {
    add("fair", "discovery fails", `${upstream.lastError}; endpoints are ${span(upstream.ageSeconds)} old`);
  }
  return found.sort((a, b) => RANK[b.level] - RANK[a.level]);
}

export function worst(troubles) {
  return troubles.reduce((level, trouble) => (RANK[trouble.level] > (RANK[level] ?? 0) ? trouble.level : level), "good");
}

/** Whether all that is bad are single endpoints: the others carry what is sent there. */
export function isPartial(troubles) {
  return worst(troubles) === "bad" && troubles.every((trouble) => trouble.level !== "bad" || trouble.address);
}

/** What is wrong with the proxy itself. */
function ofProxy(index, certificates) {
  const found = [];
  const add = (level, who, what, reason) => found.push({ level, who, what, why: reason });
  if (index && !index.ready) add("bad", "This proxy", "not ready: it is sent no traffic", index.notReadyBecause);
  const workload = certificates?.workload;
  if (workload) {
    const left = workload.notAfter - Date.now() / 1000;
    const lifetime = workload.notAfter - workload.notBefore;
    if (left <= 0) add("bad", "Certificate", `expired ${span(-left)} ago`, certificates.lastError ?? "it was not renewed");
    else if (left < lifetime / 5) add("bad", "Certificate", `expires in ${span(left)}`, certificates.lastError ?? "it should have been renewed by now");
    else if (certificates.lastError) add("fair", "Certificate", `is not renewed; ${span(left)} left`, certificates.lastError);
  }
  if (certificates?.caReachable === false && !certificates.lastError) add("fair", "CA", "did not answer last time", "the certificate in use stays until it ends");
  for (const root of certificates?.roots ?? []) {
    const left = root.notAfter - Date.now() / 1000;
    if (left < 14 * DAY) add(left < DAY ? "bad" : "fair", "Root", `${root.subject} ${left > 0 ? `ends in ${span(left)}` : "has ended"}`, "add a new root to the bundle");
  }
  return found;
}

export class Verdict {
  constructor(go) {
    this.go = go;
    this.all = false;
    this.more = byId("more-troubles");
    this.more.addEventListener("click", () => {
      this.all = !this.all;
      this.show(this.last);
    });
  }

  /** `state` has `troubles` by upstream, and what the other pages say. */
  show(state) {
    this.last = state;
    const own = ofProxy(state.index, state.certificates);
    const ofUpstreams = [...state.troubles.values()].sort((a, b) => RANK[worst(b)] - RANK[worst(a)]).flat();
    const troubles = [...own.sort((a, b) => RANK[b.level] - RANK[a.level]), ...ofUpstreams];
    const level = worst(troubles);
    const names = [...state.troubles].filter(([, found]) => worst(found) === level).map(([name]) => name);
    style(document.querySelector("#verdict-text .mark"), `mark ${level}`);
    say(document.querySelector("#verdict-text .mark"), SHAPES[level]);
    say(byId("sentence"), sentence(level, names, own, ofUpstreams));
    say(byId("summary"), summary(state));
    troubles.forEach((trouble, place) => {
      trouble.isMore = place > 0 && troubles[place - 1].who === trouble.who;
    });
    const shown = this.all ? troubles : troubles.slice(0, SHOWN);
    // An upstream may have two of a kind; their words without figures tell them apart.
    keyed(byId("troubles"), shown, ({ who, what, level }) => `${level} ${who} ${what.replace(/[\d.,<%]+ ?[kM%]?/g, "#")} ${/^[\d[]\S+/.exec(what) ?? ""}`, () => this.make(), (row, trouble) => this.fill(row, trouble));
    this.more.hidden = troubles.length <= SHOWN;
    say(this.more, this.all ? "Show the worst only" : `Show all ${troubles.length}`);
  }

  make() {
    const row = element("li", {}, element("span", { css: "state" }), element("span", { css: "who" }), element("span", { css: "what" }), element("span", { css: "why" }));
    const link = element("a", { href: "#upstreams" });
    row.children[1].append(link);
    link.addEventListener("click", (event) => {
      if (!row.upstream) return;
      event.preventDefault();
      this.go(row.upstream);
    });
    return row;
  }

  fill(row, trouble) {
    const [state, who, what, why] = row.children;
    row.upstream = trouble.upstream;
    mark(state, trouble.level, trouble.level === "bad" ? (trouble.address ? "out" : "failing") : "look");
    say(who.firstChild, trouble.who);
    style(row, trouble.isMore ? "more" : "");
    who.firstChild.hash = trouble.upstream ? "#upstreams" : "#certificates";
    say(what, trouble.since ? `${trouble.what}, for ${span(trouble.since)}` : trouble.what);
    say(why, trouble.why);
  }
}

function sentence(level, names, own, ofUpstreams) {
  if (level === "good") return "All is well";
  const mine = own.filter((trouble) => trouble.level === level);
  if (mine.length > 0) return `${mine[0].who} ${mine[0].what}`;
  const out = ofUpstreams.filter((trouble) => trouble.address);
  if (level === "bad" && isPartial(ofUpstreams)) {
    if (out.length === 1) return `${out[0].address} of ${out[0].who} is out`;
    return names.length === 1 ? `${out.length} endpoints of ${names[0]} are out` : `${out.length} endpoints are out`;
  }
  const verb = level === "bad" ? (names.length === 1 ? "is failing" : "are failing") : (names.length === 1 ? "needs a look" : "need a look");
  return names.length <= 2 ? `${names.join(" and ")} ${verb}` : `${plural(names.length, "upstream")} ${verb}`;
}

function summary({ upstreams, history }) {
  if (!upstreams) return "";
  const all = Object.values(upstreams);
  const endpoints = all.flatMap((upstream) => upstream.endpoints);
  const parts = [plural(all.length, "upstream"), `${endpoints.filter((endpoint) => !isOut(endpoint)).length} of ${plural(endpoints.length, "endpoint")} in`];
  for (const direction of ["inbound", "outbound"]) {
    const last = history?.[direction]?.lastMinute;
    if (last && last.requestsPerSecond > 0) parts.push(`${direction} ${rate(last.requestsPerSecond)}, ${share(last.successShare)} succeed, p99 ${milliseconds(last.p99Ms)}`);
  }
  return parts.join("  ·  ");
}

