/** The picture of a run on its node. Everything is set as text or as coordinates, never as HTML. */

import { differs, whatIf } from "./what_if.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 100; // of the drawing, in units of its own; it is as wide as the run has evaluations
const STUB = 14; // height of the bar of a skipped evaluation
const HEADROOM = 1.2;
const WAITING = "Run to see which steps are computed and which are skipped.";
const UNCONNECTED = "Connect the model to this node, and this node's MODEL to the sampler.";
// The figures are those of benchmarks/results/closeness.csv and what_if.csv.
const ESTIMATE =
  "Estimated from the last run's own numbers. dB: how close the final latent is to that of the same run without the " +
  "cache (PSNR); four of five estimates hold on models that they were not made with. What if: the run's rule is " +
  "replayed at the node's settings; on the bundled model it was off by one step in the mean and eight at most.";

export class Chart {
  #run;
  #settings = {};
  #about = "";
  #connected = true;
  #pointed = null; // index of the evaluation under the pointer
  #due = false;

  #element = html("div", "easycache");
  #summary = html("div", "easycache-summary", this.#element);
  #plot = svg("svg", "easycache-plot", this.#element);
  #computed = svg("path", "easycache-computed", this.#plot);
  #skipped = svg("path", "easycache-skipped", this.#plot);
  #rate = svg("path", "easycache-rate", this.#plot);
  #error = svg("path", "easycache-error", this.#plot);
  #limit = svg("path", "easycache-limit", this.#plot);
  #wanted = svg("path", "easycache-wanted", this.#plot);
  #legend = html("div", "easycache-legend", this.#element);
  #keys = ["computed", "skipped", "rate", "error", "limit"].map((name) =>
    html("span", `easycache-key easycache-${name}`, this.#legend),
  );
  #note = html("div", "easycache-note", this.#element);

  constructor() {
    this.#plot.setAttribute("preserveAspectRatio", "none");
    this.#plot.addEventListener("pointermove", (event) => this.#point(event));
    this.#plot.addEventListener("pointerleave", () => this.#point(null));
    // Fires also when a collapsed or scrolled away node comes back.
    new ResizeObserver(() => this.#soon()).observe(this.#element);
  }

  /** What to put on the node. */
  get element() {
    return this.#element;
  }

  /** run: as in runs.js; undefined: none yet. */
  show(run) {
    this.#run = run;
    this.#soon();
  }

  /**
   * settings: the node's widgets by name, without those that get a link's value. about: what backs them, a sentence.
   * connected: whether the node stands between others.
   */
  set(settings, about, connected) {
    this.#settings = settings;
    this.#about = about;
    this.#connected = connected;
    this.#soon();
  }

  /** Draw before the next frame, once however much has happened by then, and only what is seen. */
  #soon() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      if (this.#element.getClientRects().length) this.#draw();
    });
  }

  #point(event) {
    const box = this.#plot.getBoundingClientRect();
    this.#pointed = event && Math.floor(((event.clientX - box.left) / box.width) * width(this.#run));
    this.#soon();
  }

  #draw() {
    const run = this.#run;
    this.#element.classList.toggle("easycache-empty", !run);
    this.#summary.textContent = this.#summary.title = run ? summary(run) : this.#connected ? WAITING : UNCONNECTED;
    this.#note.textContent = run?.records[this.#pointed]
      ? evaluation(run.records[this.#pointed])
      : (run?.state === "done" && afterwards(run, { ...run.report, ...this.#settings })) || this.#about;
    this.#note.title = this.#note.textContent.includes("estimate") ? ESTIMATE : this.#note.textContent;
    if (run) this.#drawRun(run);
  }

  #drawRun({ report, records }) {
    const budgeted = report.target_speedup > 0;
    const scale = budgeted ? budgetScale(this.#run) : errorScale(report, { ...report, ...this.#settings });
    const top = (part) => HEIGHT * (1 - part / scale.top);
    const largest = (name) => Math.max(0, ...records.map((record) => record?.[name] ?? 0));
    const fastest = largest("rate");
    const wide = width(this.#run);

    this.#plot.setAttribute("viewBox", `0 0 ${wide} ${HEIGHT}`);
    const bars = (computed, height) =>
      records.map((record, n) => (record?.computed === computed ? bar(n, height) : "")).join("");
    this.#computed.setAttribute("d", bars(true, HEIGHT));
    this.#skipped.setAttribute("d", bars(false, STUB));
    const fast = (rate) => HEIGHT * (1 - rate / (fastest * HEADROOM || 1));
    this.#rate.setAttribute("d", line(records, ({ rate }) => rate !== null && fast(rate)));
    let spent = 0;
    const risen = budgeted
      ? ({ computed }) => top((spent += computed))
      : ({ error }) => error !== null && top(error);
    this.#error.setAttribute("d", line(records, risen));
    this.#limit.setAttribute("d", level(wide, top(scale.limit)));
    this.#wanted.setAttribute("d", scale.wanted ? level(wide, top(scale.wanted)) : "");

    const texts = [
      `computed ${report.computed}`,
      `skipped ${report.skipped}`,
      `rate to ${short(fastest)}`,
      budgeted ? "computed so far" : `error to ${short(largest("error"))}`,
      budgeted ? `budget ${scale.limit}` : `threshold ${short(report.threshold, 3)}`,
    ];
    this.#keys.forEach((key, i) => (key.textContent = texts[i]));
  }
}

/** How many evaluations the drawing has room for: what was seen, and while it runs one guess for what is to come. */
function width({ state, report, records }) {
  const seen = records.length;
  if (state !== "running" || !seen) return Math.max(1, seen);
  const steps = (records.at(-1)?.step ?? seen - 1) + 1;
  return Math.max(seen, Math.round((report.steps * seen) / steps));
}

function errorScale({ threshold }, settings) {
  const wanted = settings.target_speedup > 0 || settings.threshold === threshold ? 0 : settings.threshold;
  // A slider far up must not flatten what was measured.
  const top = (Math.max(threshold, Math.min(wanted, 3 * threshold)) || 1) * HEADROOM;
  return { limit: threshold, wanted: wanted < top ? wanted : 0, top };
}

function budgetScale(run) {
  const limit = Math.ceil(width(run) / run.report.target_speedup - 1e-9);
  return { limit, wanted: 0, top: limit * HEADROOM };
}

function summary(run) {
  const { report, records, state } = run;
  if (!report.evaluations) return "Nothing was sampled.";
  const single = report.evaluations <= (records.at(-1)?.step ?? Infinity) + 1;
  const counted = `${report.computed} of ${report.evaluations} ${single ? "steps" : "evaluations"} computed`;
  const speedup = report.speedup === null ? "" : `${report.speedup.toFixed(1)}x, `;
  const ending = { running: "…", done: "", stopped: ", stopped" }[state];
  return `${speedup}${counted}${ending}`;
}

/** Why nothing was skipped; "" if something was. Runs that older versions left in the browser have none. */
const reason = ({ report }) => (report.reason ? `Nothing was skipped: ${report.reason}.` : "");

/** What the log warns of, the first of it. Runs that older versions left in the browser have none. */
const note = ({ report }) => report.notes?.[0] ?? "";

/** What there is to say of a run that is over; "" if nothing. */
const afterwards = (run, settings) =>
  estimate(run, settings) || reason(run) || sentence(closenessText(run, run.report.closeness)) || note(run);

/** As nodes/summary.py says it; "" if it is not known, or not how sure it is. closeness: in dB. */
function closenessText({ report: { closeness_margin: margin } }, closeness) {
  if (!Number.isFinite(closeness) || !Number.isFinite(margin)) return "";
  const [from, to] = [closeness - margin, closeness + margin].map(Math.round);
  return `${from} to ${to} dB of the uncached latent`;
}

const sentence = (text) => text && `${text} (estimate).`;

/** What the node's settings would have done with that run; "" if they are those of the run. */
function estimate(run, settings) {
  if (!differs(run, settings)) return "";
  const { computed, evaluations, exact, closeness, reason } = whatIf(run, settings);
  if (reason) return `What if: ${reason}.`;
  const { target_speedup: target, threshold } = settings;
  const place = target > 0 ? `target_speedup ${short(target, 3)}` : `threshold ${short(threshold, 3)}`;
  const count = `${computed} of ${evaluations} (${(evaluations / computed).toFixed(1)}x)`;
  const near = closenessText(run, closeness);
  const answer = exact ? count : `about ${count}`;
  return `What if, ${place}: ${near ? `${answer}, ${near}` : answer}${near || !exact ? " (estimate)" : ""}.`;
}

function evaluation({ step, sigma, computed, rate, error }) {
  const numbers = [["sigma", sigma], ["rate", rate], ["error", computed ? null : error]];
  const known = numbers.filter(([, value]) => value !== null).map(([name, value]) => `${name} ${short(value)}`);
  return [`step ${step + 1}: ${computed ? "computed" : "skipped"}`, ...known].join(", ");
}

const bar = (n, height) => `M${n + 0.1} ${HEIGHT}v${-height}h0.8v${height}z`;
const level = (wide, y) => `M0 ${y}H${wide}`;

/** A line through the middles of the evaluations; y(record) is its height there, false where there is none. */
function line(records, y) {
  let drawing = false;
  return records
    .map((record, n) => {
      const height = record ? y(record) : false;
      const command = height === false ? "" : `${drawing ? "L" : "M"}${n + 0.5} ${height}`;
      drawing = height !== false;
      return command;
    })
    .join("");
}

const short = (number, digits = 2) => String(Number(number.toPrecision(digits)));

function html(name, classes, parent) {
  const made = document.createElement(name);
  made.className = classes;
  parent?.append(made);
  return made;
}

function svg(name, classes, parent) {
  const made = document.createElementNS(SVG, name);
  made.setAttribute("class", classes);
  parent.append(made);
  return made;
}
