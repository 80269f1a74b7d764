// The workload's certificate and the roots, with the time that each has left.

import { byId, element, keyed, mark, say, set, span, style } from "./words.js";

/** Renewal begins long before this part of the lifetime is left. */
const LATE = 0.2;

export function showCertificates(told) {
  const now = Date.now() / 1000;
  const shown = [];
  const workload = told?.workload;
  if (workload) {
    shown.push({
      key: "workload", kind: "Workload", name: workload.id, left: workload.notAfter - now, part: (workload.notAfter - now) / (workload.notAfter - workload.notBefore),
      note: told.nextRenewal ? `next renewal in ${span(told.nextRenewal - now)}` : "", wrong: told.lastError,
    });
  }
  for (const root of told?.roots ?? []) shown.push({ key: root.subject + root.notAfter, kind: "Root", name: root.subject, left: root.notAfter - now, note: "" });
  keyed(byId("certificate-list"), shown, (one) => one.key, make, fill);
  const none = byId("no-certificates");
  none.hidden = shown.length > 0;
  say(none, told?.lastError ? `No certificate: ${told.lastError}` : "No certificate. With a CA or certificate files configured, the workload's identity and the trusted roots appear here.");
}

function make() {
  return element("li", {},
    element("span", { css: "kind" }), element("span", { css: "name" }), element("span"),
    element("meter", { min: "0", max: "1", low: "0.2" }), element("span", { css: "quiet" }), element("span", { css: "why" }));
}

function fill(item, one) {
  const [kind, name, state, meter, note, wrong] = item.children;
  say(kind, one.kind);
  say(name, one.name);
  const level = one.left <= 0 || (one.part !== undefined && one.part < LATE) ? "bad" : one.wrong ? "fair" : "good";
  mark(state, level, one.left > 0 ? `${span(one.left)} left` : `ended ${span(-one.left)} ago`);
  meter.hidden = one.part === undefined;
  set(meter, "value", Math.max(0, one.part ?? 0).toFixed(3));
  set(meter, "aria-label", `${one.kind}: lifetime left`);
  say(note, one.note);
  style(wrong, one.wrong ? "why" : "why away");
  say(wrong, one.wrong);
}
