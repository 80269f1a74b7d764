// The last failures: what they have in common first, then each.

import { byId, element, keyed, mark, plural, say, span } from "./words.js";
import { failure, fill, row } from "./exchanges.js";

const SHOWN = 8;
const GROUPS = 6;

export class Failures {
  constructor() {
    this.all = false;
    this.last = null;
    byId("all-failures").addEventListener("click", () => {
      this.all = !this.all;
      this.draw();
    });
  }

  /** `told` is what /failures says; undefined where a proxy has no such page. */
  show(told) {
    if (told === undefined) {
      this.none("This proxy keeps no list of failures.");
      return;
    }
    this.last = Array.isArray(told) ? told : told.failures ?? [];
    this.draw();
  }

  none(text) {
    byId("no-failures").hidden = false;
    byId("failure-table").hidden = true;
    say(byId("no-failures"), text);
  }

  draw() {
    const last = this.last;
    if (!last) return;
    say(byId("failure-count"), last.length ? `the last ${last.length}` : "");
    keyed(byId("failure-groups"), this.groups(), (group) => group.key, () => element("li", {}, element("span"), element("b"), element("span", { css: "why" }), element("span", { css: "quiet" })), (item, group) => {
      mark(item.children[0], "bad", `${group.count} ×`);
      say(item.children[1], [group.upstream, group.endpoint].filter(Boolean).join(" at ") || "no upstream");
      say(item.children[2], group.why);
      say(item.children[3], `last ${span((Date.now() - group.newest) / 1000)} ago`);
    });
    if (last.length === 0) {
      this.none("Nothing has failed since this proxy started. What fails appears here with its reason.");
      byId("all-failures").hidden = true;
      return;
    }
    byId("no-failures").hidden = true;
    byId("failure-table").hidden = false;
    const seen = new Map();
    const shown = (this.all ? last : last.slice(0, SHOWN)).map((exchange) => {
      const alike = JSON.stringify(exchange);
      const number = (seen.get(alike) ?? 0) + 1;
      seen.set(alike, number);
      return { exchange, key: `${alike} ${number}` };
    });
    keyed(byId("failure-table").tBodies[0], shown, (item) => item.key, row, (line, { exchange }) => fill(line, exchange));
    const more = byId("all-failures");
    more.hidden = last.length <= SHOWN;
    say(more, this.all ? `Show the newest ${SHOWN}` : `Show all ${last.length}`);
  }

  /** By upstream, endpoint and reason, the most frequent first. */
  groups() {
    const groups = new Map();
    for (const exchange of this.last) {
      const why = failure(exchange) ?? plural(1, "failure");
      // The address that a reason names is that of the endpoint; figures in it make no other reason.
      const key = [exchange.upstream, exchange.endpoint, why.replace(/\d+(\.\d+)? ?m?s\b/g, "#")].join("\n");
      const group = groups.get(key) ?? { key, upstream: exchange.upstream, endpoint: exchange.endpoint, why, count: 0, newest: Date.parse(exchange.time) };
      group.count += 1;
      groups.set(key, group);
    }
    return [...groups.values()].sort((a, b) => b.count - a.count).slice(0, GROUPS);
  }
}
