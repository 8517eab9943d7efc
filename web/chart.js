/** The picture of a run on its node. Everything is set as text or as coordinates, never as HTML. */

import { textsIn } from "./texts.js";
import { budgetOf, differs, whatIf } from "./what_if.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 100; // of the drawing, in units of its own; it is as wide as the run has evaluations
const STUB = 14; // height of the bar of a skipped evaluation
const HEADROOM = 1.2;

export class Chart {
  #run;
  #settings = {};
  #about = "";
  #wrong = "";
  #replaced = false;
  #connected = true;
  #texts = textsIn("en");
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
   * settings: the node's widgets by name, without those that get a link's value. texts: as from textsIn. about: what
   * backs the settings; wrong: why they are refused; each a sentence, or "". replaced: whether another node counts in
   * place of this one. connected: whether the node stands between others.
   */
  set(settings, { texts, about, wrong, replaced, connected }) {
    this.#settings = settings;
    this.#texts = texts;
    this.#about = about;
    this.#wrong = wrong;
    this.#replaced = replaced;
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
    this.#summary.textContent = this.#summary.title = run ? summary(run, this.#texts) : this.#whyEmpty();
    const { text, title } = this.#noteOn(run);
    this.#note.textContent = text;
    this.#note.title = title ?? text;
    if (run) this.#drawRun(run);
  }

  #whyEmpty() {
    if (!this.#connected) return this.#texts.unconnected;
    return this.#replaced ? this.#texts.followed : this.#texts.waiting;
  }

  /** The line below the picture, {text, title}; no title where that is the text. */
  #noteOn(run) {
    const texts = this.#texts;
    const pointedAt = run?.records[this.#pointed];
    if (pointedAt) return { text: evaluation(pointedAt, texts) };
    if (this.#wrong) return { text: this.#wrong };
    if (run && this.#replaced) return { text: texts.followed };
    const over = run?.state === "done" && afterwards(run, { ...run.report, ...this.#settings }, texts);
    return over || { text: this.#about };
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

    const texts = this.#texts;
    const keys = [
      texts.computed(report.computed),
      texts.skipped(report.skipped),
      texts.rate(short(fastest)),
      budgeted ? texts.computedSoFar : texts.error(short(largest("error"))),
      budgeted ? texts.budget(scale.limit) : texts.threshold(short(report.threshold, 3)),
    ];
    this.#keys.forEach((key, i) => (key.textContent = keys[i]));
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
  const limit = budgetOf(width(run), run.report.target_speedup);
  return { limit, wanted: 0, top: limit * HEADROOM };
}

function summary(run, texts) {
  const { report, records, state } = run;
  const { evaluations, computed } = report;
  if (!evaluations) return texts.nothingSampled;
  const single = evaluations <= (records.at(-1)?.step ?? Infinity) + 1;
  const speedup = report.speedup === null ? "" : texts.speedup(report.speedup.toFixed(1));
  return texts.summary({ speedup, computed, evaluations, single, state });
}

/** What there is to say of a run that is over, {text, title} as above; null if nothing. */
function afterwards(run, settings, texts) {
  const { reason, notes, closeness } = run.report; // runs that older versions left in the browser have no notes
  if (differs(run, settings)) return { text: estimate(run, settings, texts), title: texts.estimates };
  if (reason) {
    const text = texts.nothingSkipped(reason); // some are longer than the node is high
    return { text, title: text };
  }
  const near = closenessText(run, closeness, texts);
  if (near) return { text: texts.sentence(near, true), title: texts.estimates };
  const said = notes?.map(texts.note);
  return said?.length ? { text: said[0], title: said.join(texts.gap) } : null;
}

/** As nodes/summary.py says it; "" if it is not known, or not how sure it is. closeness: in dB. */
function closenessText({ report: { closeness_margin: margin } }, closeness, texts) {
  if (!Number.isFinite(closeness) || !Number.isFinite(margin)) return "";
  return texts.closeness(...[closeness - margin, closeness + margin].map(Math.round));
}

/** What the node's settings would have done with that run. */
function estimate(run, settings, texts) {
  const { computed, evaluations, exact, closeness, reason } = whatIf(run, settings);
  if (reason) return texts.whatIf(texts.noEstimate[reason](settings.predictor));
  const { target_speedup: target, threshold } = settings;
  const place = target > 0 ? texts.targetSpeedup(short(target, 3)) : texts.threshold(short(threshold, 3));
  const count = texts.count({ computed, evaluations, exact });
  const near = closenessText(run, closeness, texts);
  const answer = near ? `${count}${texts.list}${near}` : count;
  return texts.sentence(texts.whatIfAt(place, answer), near || !exact);
}

function evaluation({ step, sigma, computed, rate, error }, texts) {
  const numbers = [["sigma", sigma], ["rate", rate], ["error", computed ? null : error]];
  const known = numbers.filter(([, value]) => value !== null);
  const shown = known.map(([name, value]) => `${texts.numbers[name]} ${short(value)}`);
  return [texts.evaluation(step + 1, computed), ...shown].join(texts.list);
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
