// How numbers, times and names are written, and how they get onto the page.
//
// Text from the network (paths, hosts, identities) is only ever set as text: there is no markup in any script here,
// and the page's policy (Trusted Types) has the browser refuse it.

/** An element with a class, text or children. */
export function element(name, { id, css, text, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (id) made.id = id;
  if (css) made.className = css;
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Sets text if it is another: an unchanged page costs the browser nothing. */
export function say(node, text) {
  const shown = text ?? "";
  if (node.textContent !== shown) node.textContent = shown;
}

export function set(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) {
    node.setAttribute(name, value);
  }
}

export function style(node, css) {
  if (node.className !== css) node.className = css;
}

/**
 * Makes the children of `parent` those of `items`, keeping the elements of the same key. `make` makes one, `update`
 * fills it. Elements are moved only when `reorder` says so: who reads or has the focus there is not disturbed.
 */
export function keyed(parent, items, key, make, update, reorder = true) {
  const old = (parent.kept ??= new Map());
  const wanted = new Map();
  for (const item of items) if (!wanted.has(key(item))) wanted.set(key(item), item);
  for (const [name, node] of old) if (!wanted.has(name)) node.remove();
  const kept = new Map();
  // A table's rows come after its head.
  let next = parent.tHead ? parent.tHead.nextElementSibling : parent.firstElementChild;
  for (const [name, item] of wanted) {
    const known = old.get(name);
    const node = known ?? make(item);
    kept.set(name, node);
    update(node, item);
    if (!known || (reorder && next !== node)) parent.insertBefore(node, next);
    else next = node.nextElementSibling;
  }
  parent.kept = kept;
}

/** Three figures: 0.03, 1.25, 12.5, 125, 1 250, 12.5 k. */
export function figures(value) {
  if (value === 0) return "0";
  if (value < 0.01) return "<0.01";
  if (value < 10) return trimmed(value, 2);
  if (value < 100) return trimmed(value, 1);
  if (value < 10_000) return String(Math.round(value));
  return value < 1e6 ? `${trimmed(value / 1e3, 1)} k` : `${trimmed(value / 1e6, 1)} M`;
}

function trimmed(value, digits) {
  return String(Number(value.toFixed(digits)));
}

export function rate(value) {
  return value === null || value === undefined ? "–" : `${figures(value)}/s`;
}

/** Never rounds to 100 % what was not. */
export function share(value) {
  if (value === null || value === undefined) return "–";
  if (value === 1) return "100 %";
  const percent = Math.floor(value * 10_000) / 100;
  return percent >= 99 ? `${percent.toFixed(2)} %` : `${percent.toFixed(1)} %`;
}

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 ms";
  return value < 1000 ? `${figures(value)} ms` : `${figures(value / 1000)} s`;
}

/** A time span in its two largest units. */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return two(whole, 60, "min", "s");
  if (whole < 172_800) return two(Math.round(whole / 60), 60, "h", "min");
  if (whole < 864_000) return two(Math.round(whole / 3600), 24, "days", "h");
  const days = Math.round(whole / 86_400);
  return days < 730 ? `${days} days` : `${Math.floor(days / 365)} years`;
}

function two(value, per, large, small) {
  const rest = value % per;
  return rest === 0 ? `${Math.floor(value / per)} ${large}` : `${Math.floor(value / per)} ${large} ${rest} ${small}`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const SHORT = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

export function clock(milliseconds) {
  return CLOCK.format(milliseconds);
}

export function shortClock(milliseconds) {
  return SHORT.format(milliseconds);
}

/** `spiffe://cluster.local/ns/shop/sa/web` is shop/web here; the whole stands in its title. */
export function identity(id) {
  return /^spiffe:\/\/[^/]+\/ns\/([^/]+)\/sa\/([^/]+)$/.exec(id ?? "")?.slice(1).join("/") ?? id;
}

export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/** A state as a shape and a word: a colour alone tells nothing to many. */
export const SHAPES = { good: "●", fair: "▲", bad: "■", idle: "○", wait: "○" };

export function mark(node, level, word) {
  style(node, `state ${level}`);
  set(node, "data-shape", SHAPES[level]);
  say(node, word);
}

/** The words of `Proxy-Status` (RFC 9209): what failed, and the detail. */
export function proxyStatus(value) {
  const error = /;\s*error=([a-z_]+)/.exec(value ?? "")?.[1];
  const details = /;\s*details="((?:[^"\\]|\\.)*)"/.exec(value ?? "")?.[1]?.replace(/\\(.)/g, "$1");
  const words = error?.replaceAll("_", " ");
  if (!words) return details ?? value;
  return details ? `${words}: ${details}` : words;
}
