// How one request or connection is shown, in failures and in the tap alike.

import { clock, element, identity, mark, milliseconds, proxyStatus, say, set } from "./words.js";

const LABELS = ["Time", "Request", "Outcome", "Upstream", "Endpoint", "Caller", "Took"];

/** Why it failed, or null. */
export function failure(exchange) {
  const words = exchange.why ?? (exchange.proxy_status ? proxyStatus(exchange.proxy_status) : null);
  // The upstream has a column of its own.
  if (words) return words.startsWith(`${exchange.upstream} answered`) ? words.slice(exchange.upstream.length + 1) : words;
  if (exchange.code >= 500) return `answered with ${exchange.code}`;
  return [2, 4, 13, 14, 15].includes(exchange.grpc_status) ? `answered with grpc-status ${exchange.grpc_status}` : null;
}

export function row() {
  const cells = LABELS.map((label) => element("td", { "data-label": label }));
  cells[1].append(element("span", { css: "method" }), " ", element("span", { css: "path" }), element("span", { css: "host" }));
  cells[2].append(element("span"), " ", element("span", { css: "why" }));
  cells[6].className = "number";
  return element("tr", {}, ...cells);
}

/** Everything in an exchange comes from the network. */
export function fill(row, exchange) {
  const [time, request, outcome, upstream, endpoint, caller, took] = row.children;
  say(time, clock(Date.parse(exchange.time)));
  say(request.children[0], exchange.method ?? "TCP");
  say(request.children[1], exchange.path ?? exchange.reason?.replaceAll("_", " "));
  say(request.children[2], exchange.direction);
  set(request, "title", exchange.authority && `for ${exchange.authority}`);
  const wrong = failure(exchange);
  const code = exchange.code === undefined ? "" : String(exchange.code);
  const word = exchange.grpc_status ? `${code} grpc ${exchange.grpc_status}` : code || (wrong ? "failed" : "ended");
  mark(outcome.children[0], wrong ? "bad" : exchange.code >= 400 ? "fair" : "good", word);
  const retries = exchange.retries ? `, after ${exchange.retries === 1 ? "a retry" : `${exchange.retries} retries`}` : "";
  say(outcome.children[1], wrong ? wrong + retries : retries.slice(2));
  say(upstream, exchange.upstream || "–");
  say(endpoint, exchange.endpoint ?? "none");
  say(caller, exchange.direction === "inbound" ? identity(exchange.peer) ?? exchange.client : "this workload");
  set(caller, "title", exchange.direction === "inbound" ? exchange.peer : null);
  say(took, milliseconds(exchange.duration_ms));
}
