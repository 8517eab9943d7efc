/**
 * The last run of each node. The server sends them while they sample (nodes/progress_events.py), and finished ones are
 * kept in the browser's own storage, never in a workflow. No DOM here.
 *
 * A run is {run, state, report, records}: its id, "running", "done" or "stopped", totals, and one entry per evaluation,
 * null where the server was not heard.
 */

const PLACE = "easycache.runs";
// ComfyUI keeps drafts of workflows in the same storage, some megabytes in all.
const MOST_RUNS = 40;
const MOST_CHARACTERS = 300_000;
const FIELDS = ["step", "sigma", "computed", "input_change", "rate", "error", "output_norm"];

export class Runs {
  #live = new Map();
  #waiting = new Map(); // messages, by key
  #storage;

  /** storage: as window.localStorage. */
  constructor(storage) {
    this.#storage = storage;
  }

  /**
   * Take in a message on the run of a node, by the node's key. One that was known when its prompt was queued waits until
   * the node's present run is over: its prompt does.
   */
  receive(key, message) {
    const before = this.#live.get(key);
    if (message.known && before?.state === "running") {
      this.#waiting.set(key, message);
      return before;
    }
    const { run, state, report, first, records } = message;
    const heard = before?.run === run ? before.records : [];
    const together = Array.from({ length: first }, (_, n) => heard[n] ?? null).concat(records);
    const now = { run, state, report, records: together };
    this.#live.set(key, now);
    if (state === "running") return now;
    this.#keep(key, now);
    const waiting = this.#waiting.get(key);
    this.#waiting.delete(key);
    return waiting ? this.receive(key, waiting) : now;
  }

  /** The run of that key; undefined if there was none. */
  last(key) {
    if (!this.#live.has(key)) {
      const kept = this.#kept().find(([other]) => other === key);
      if (kept) this.#live.set(key, kept[1]);
    }
    return this.#live.get(key);
  }

  /** A copied node shows the run of its original until it has one of its own. */
  copy(from, to) {
    const run = this.last(from);
    if (!run || run.state === "running") return;
    this.#live.set(to, run);
    this.#keep(to, run);
  }

  #keep(key, run) {
    const others = this.#kept().filter(([other]) => other !== key);
    const runs = [...others, [key, run]].slice(-MOST_RUNS).map(([other, one]) => [other, packed(one)]);
    const whole = () => JSON.stringify({ fields: FIELDS, runs });
    let text = whole();
    while (text.length > MOST_CHARACTERS && runs.length) {
      runs.shift();
      text = whole();
    }
    try {
      this.#storage.setItem(PLACE, text);
    } catch {
      // Full or forbidden: runs then last as long as the page.
    }
  }

  /** [[key, run], ...], oldest first; without what is damaged. */
  #kept() {
    try {
      const kept = JSON.parse(this.#storage.getItem(PLACE) ?? "[]");
      // Older versions left the runs alone, with these fields.
      const { fields, runs } = Array.isArray(kept) ? { fields: FIELDS, runs: kept } : kept;
      return runs.filter(isSound).map(([key, run]) => [key, unpacked(run, fields)]);
    } catch {
      return []; // forbidden, or something else altogether
    }
  }
}

function packed({ run, state, report, records }) {
  const short = (value) => (typeof value === "number" ? Number(value.toPrecision(6)) : value);
  return { run, state, report, records: records.map((record) => record && FIELDS.map((name) => short(record[name]))) };
}

function unpacked({ records, ...run }, fields) {
  const record = (values) => values && Object.fromEntries(fields.map((name, i) => [name, values[i]]));
  return { ...run, records: records.map(record) };
}

/** Whether it is [key, packed run]: others may write to the browser's storage, too. */
function isSound(entry) {
  const [key, run] = Array.isArray(entry) ? entry : [];
  const report = run?.report;
  return typeof key === "string" && report !== null && typeof report === "object" && Array.isArray(run.records) &&
    run.records.every((record) => record === null || Array.isArray(record));
}
