// The tap: live requests by filter, read from the stream of /tap as they come.

import { byId, keyed, plural, say } from "./words.js";
import { fill, row } from "./exchanges.js";

/** Rows that are kept; older ones go. */
const KEPT = 100;
/** Between two drawings: a busy proxy has thousands of requests a second, and nobody reads so fast. */
const DRAWN_EVERY_MS = 250;

export class Tap {
  constructor() {
    this.form = byId("tap-form");
    this.button = byId("tap-button");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.running.abort();
      else this.run();
    });
  }

  async run() {
    const filter = new URLSearchParams();
    for (const [name, value] of new FormData(this.form)) if (value.trim()) filter.set(name, value.trim());
    this.running = new AbortController();
    this.lines = [];
    this.count = 0;
    this.dropped = 0;
    say(this.button, "Stop");
    say(byId("tap-state"), "Waiting for the first request that the filter takes …");
    this.draw();
    const drawing = setInterval(() => this.draw(), DRAWN_EVERY_MS);
    let ended = "The proxy ended the stream.";
    try {
      const answer = await fetch(`/tap?${filter}`, { headers: { accept: "application/x-ndjson" }, signal: this.running.signal });
      if (answer.status === 404) ended = "This proxy has no tap.";
      else if (!answer.ok) ended = (await answer.json()).error;
      else await this.read(answer.body);
    } catch (error) {
      ended = this.running.signal.aborted ? "Stopped." : `The stream broke off: ${error.message}.`;
    }
    clearInterval(drawing);
    this.running = null;
    this.draw();
    say(this.button, "Start");
    say(byId("tap-state"), `${ended} ${this.count ? `${plural(this.count, "request")} came.` : ""}`);
  }

  async read(stream) {
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line) this.take(JSON.parse(line));
    }
  }

  take(exchange) {
    if (exchange.dropped !== undefined) {
      this.dropped += exchange.dropped;
      return;
    }
    this.count += 1;
    this.lines.unshift({ number: this.count, exchange });
    if (this.lines.length > KEPT) this.lines.pop();
    this.changed = true;
  }

  draw() {
    if (this.running && this.count > 0) {
      const missed = this.dropped ? `; ${this.dropped} more came too fast to be shown` : "";
      say(byId("tap-state"), `Running: ${plural(this.count, "request")}${missed}.`);
    }
    byId("tap-table").hidden = this.lines.length === 0;
    if (!this.changed && this.lines.length > 0) return;
    this.changed = false;
    keyed(byId("tap-table").tBodies[0], this.lines, (line) => line.number, (line) => {
      const made = row();
      fill(made, line.exchange);
      return made;
    }, () => {});
  }
}
