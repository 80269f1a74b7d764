// The dashboard: asks this proxy every two seconds and shows what it says.
//
// It asks the same paths as every program, and only this origin. What has not changed is not drawn anew.

import { byId, clock, element, identity, keyed, say, set } from "./words.js";
import { Charts } from "./charts.js";
import { Failures } from "./failures.js";
import { Picture } from "./map.js";
import { Tap } from "./tap.js";
import { Upstreams } from "./upstreams.js";
import { Verdict, ofUpstream } from "./troubles.js";
import { showCertificates } from "./certificates.js";

const EVERY_MS = 2000;
/** A proxy that takes longer is as good as gone. */
const PATIENCE_MS = 5000;
/** A slow answer is asked for less often: at most a tenth of the time goes into it. */
const REST_PER_WORK = 10;

const state = { troubles: new Map() };
const upstreams = new Upstreams();
const go = (name) => upstreams.go(name);
const verdict = new Verdict(go);
const charts = new Charts();
const picture = new Picture(go);
const failures = new Failures();
new Tap();

let goneSince = null;
let answeredAt = null;

async function ask(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" }, signal: AbortSignal.timeout(PATIENCE_MS) });
  // A page that this version does not have is not trouble.
  if (answer.status === 404) return undefined;
  if (!answer.ok) throw new Error(`${path} answers ${answer.status}`);
  return answer.json();
}

/** Asks for `path` again and again; `take` gets the answers. */
async function follow(path, take) {
  for (;;) {
    const start = performance.now();
    if (!document.hidden) {
      try {
        take(await ask(typeof path === "function" ? path() : path));
        answered();
      } catch (error) {
        unanswered(error);
      }
    }
    const took = performance.now() - start;
    await new Promise((done) => setTimeout(done, Math.max(EVERY_MS - took, took * REST_PER_WORK * (goneSince ? 0 : 1), 200)));
  }
}

function answered() {
  answeredAt = Date.now();
  if (goneSince === null) return;
  goneSince = null;
  byId("gone").hidden = true;
  document.body.classList.remove("is-gone");
}

function unanswered(error) {
  console.debug(error);
  goneSince ??= answeredAt ?? Date.now();
}

function showLife() {
  const isGone = goneSince !== null;
  document.body.classList.toggle("is-gone", isGone);
  byId("gone").hidden = !isGone;
  if (isGone) {
    say(byId("gone"), `This proxy does not answer since ${clock(goneSince)}. What is below is from then. The page goes on trying and recovers by itself.`);
  }
  say(byId("live"), isGone ? "gone" : answeredAt ? `live · ${clock(answeredAt)}` : "connecting …");
}

/** What is new goes behind what is there; another process starts over. */
function takeHistory(told) {
  const known = state.history;
  if (known && known.started !== told.started && told.since > 0) {
    // Another process, that was asked for what came after the last of the one before.
    state.history = undefined;
    return;
  }
  if (known && told.since === known.now) {
    for (const direction of ["inbound", "outbound"]) {
      for (const [key, values] of Object.entries(told[direction])) {
        if (Array.isArray(values)) told[direction][key] = [...known[direction][key], ...values].slice(-told.samples);
      }
    }
  }
  // The number of the look that the first value is of.
  told.first = told.now - told.inbound.requests.length + 1;
  state.history = told;
  charts.show(told);
  changed();
}

/** Only what is new, unless the proxy was started anew in between. */
function historyPath() {
  const known = state.history;
  return known && goneSince === null ? `/history?since=${known.now}` : "/history";
}

let scheduled = false;

/** Several answers that come together are drawn together. */
function changed() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const seen = new Map((state.history?.upstreams ?? []).map((one) => [one.name, one.lastMinute]));
    state.troubles = new Map();
    for (const [name, upstream] of Object.entries(state.upstreams ?? {})) {
      const found = ofUpstream(name, upstream, seen.get(name));
      if (found.length > 0) state.troubles.set(name, found);
    }
    if (state.upstreams) verdict.show(state);
    upstreams.show(state);
    picture.show(state);
  });
}

function takeIndex(told) {
  state.index = told;
  say(byId("version"), `Outrigger ${told.version}`);
  const pages = told.pages.filter((page) => page.method === "GET");
  keyed(byId("pages"), pages, (page) => page.path, (page) => element("li", {}, element("a", { href: page.path, text: page.path }), element("span", { css: "quiet", text: ` ${page.what}` })), () => {});
  changed();
}

function takeCertificates(told) {
  state.certificates = told;
  showCertificates(told);
  const id = told?.workload?.id;
  say(byId("workload"), id ? identity(id) : "without identity");
  set(byId("workload"), "title", id);
  document.title = `${id ? identity(id) : "Outrigger"} · Outrigger`;
  changed();
}

function takeUpstreams(told) {
  state.upstreams = told;
  const names = Object.keys(told).slice(0, 500);
  keyed(byId("upstream-names"), names, (name) => name, (name) => element("option", { value: name }), () => {}, false);
  changed();
}

follow("/", takeIndex);
follow(historyPath, takeHistory);
follow("/upstreams", takeUpstreams);
follow("/traffic", (told) => {
  state.traffic = told;
  changed();
});
follow("/certificates", takeCertificates);
follow("/failures", (told) => failures.show(told));
setInterval(showLife, 500);
