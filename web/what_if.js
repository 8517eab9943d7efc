/**
 * How many evaluations a recorded run would have computed at other settings, and how close it would have come to the
 * uncached run. Estimates: what a run that computes elsewhere would have measured is taken from the recorded one, on a
 * line between what that has measured. The rules are those of easycache_core (reuse.py, forecast.py, budget.py). No DOM
 * here.
 *
 * A run is {report, records}: the report's totals, and one record per evaluation, {step, sigma, computed, input_change,
 * rate, error, output_norm} as in easycache_core/trace.py. settings: the node's widgets by name.
 */

/**
 * {computed, evaluations, exact, closeness}, or {reason}, a name in texts.js, where the run says nothing about these
 * settings. exact: whether computed is. closeness: in dB as the report's, null if nothing is known of it.
 */
export function whatIf(run, settings) {
  const { report, records } = run;
  const evaluations = records.length;
  if (!evaluations || records.some((record) => !record)) return { reason: "unrecorded" };
  const windowed = settings.start_percent > 0 || settings.end_percent < 1;
  if (settings.target_speedup > 0) {
    const computed = budgetOf(evaluations, settings.target_speedup);
    const near = windowed ? null : closeness(run, settings, spread(evaluations, computed));
    return { computed, evaluations, exact: true, closeness: near };
  }
  if (settings.threshold <= 0) return { computed: evaluations, evaluations, exact: true, closeness: null };
  if (windowed) return { reason: "windowed" };
  if (settings.predictor !== report.predictor) return { reason: "otherPredictor" };
  if (!RULES[settings.predictor]) return { reason: "unknownPredictor" };
  const rule = RULES[settings.predictor](records);
  if (!rule) return { reason: "nothingSkipped" };
  const gaps = replay(records, settings, rule);
  return { computed: gaps.length, evaluations, exact: false, closeness: closeness(run, settings, gaps) };
}

/** How many of so many evaluations may be computed: as easycache_core/budget.py rounds it; the first and the last. */
export function budgetOf(evaluations, targetSpeedup) {
  return Math.max(Math.min(evaluations, 2), Math.ceil(evaluations / targetSpeedup - 1e-9));
}

/** Whether the node is set to something else than it was in that run, as far as the run can tell. */
export function differs({ report, records }, settings) {
  const { target_speedup: target, max_consecutive_skips: most } = settings;
  if (target !== report.target_speedup) return true;
  // Runs that older versions left in the browser do not say where they were allowed to skip.
  if (["start_percent", "end_percent"].some((name) => name in report && report[name] !== settings[name])) return true;
  if (target > 0) return false;
  const others = ["threshold", "predictor", "warmup_steps"].some((name) => settings[name] !== report[name]);
  let gap = 0;
  return others || (most > 0 && records.some((record) => (gap = record?.computed ? 0 : gap + 1) > most));
}

/**
 * Take the decisions of a run anew: how many evaluations are skipped before each computed one. rule: error(n, skipped)
 * is E at evaluation n after so many skipped ones, NaN where the network has to be asked; computed(n, skipped) says that
 * it was.
 */
function replay(records, settings, rule) {
  const { threshold, warmup_steps: warmup, max_consecutive_skips: most } = settings;
  const lastStep = records.at(-1).step;
  const gaps = [];
  let skipped = 0;
  records.forEach((record, n) => {
    const open = record.step >= warmup && record.step < lastStep && gaps.length > 1 && !(most > 0 && skipped >= most);
    if (open && rule.error(n, skipped) < threshold) {
      skipped += 1;
    } else {
      rule.computed(n, skipped);
      gaps.push(skipped);
      skipped = 0;
    }
  });
  return gaps;
}

/**
 * The recorded run's closeness, moved by what its gaps and the others do to the result: a gap of m skipped evaluations
 * counts m (m + 1), and gaps add up by their squares (benchmarks/what_if.py).
 */
function closeness({ report, records }, settings, gaps) {
  const drift = (lengths) => Math.hypot(...lengths.map((m) => m * (m + 1)));
  const recorded = [0];
  for (const { computed } of records) computed ? recorded.push(0) : (recorded[recorded.length - 1] += 1);
  const known = Number.isFinite(report.closeness) && settings.predictor === report.predictor && drift(gaps) > 0;
  return known ? report.closeness - 20 * Math.log10(drift(gaps) / drift(recorded)) : null;
}

/** The gaps of a budget, about: all alike. */
function spread(evaluations, computed) {
  const gaps = Math.max(1, computed - 1), skipped = evaluations - computed;
  const before = (n) => Math.floor((n * skipped) / gaps);
  return Array.from({ length: gaps }, (_, n) => before(n + 1) - before(n));
}

/** The paper's rule: E grows by k ||x_n - x_(n-1)|| / ||v_i||. */
function reuse(records) {
  const seen = records.flatMap((record, n) => (record.computed ? [n] : []));
  // k of a computed evaluation tells of the way from the one before it.
  const rate = curve(
    seen.slice(1).map((n, i) => [(n + seen[i]) / 2, records[n].rate]),
  );
  const norm = curve(seen.map((n) => [n, records[n].output_norm]));
  if (!rate || !norm) return null;
  let error = 0, last = null, before = null;
  return {
    error: (n) => (error += (rate((last + before) / 2) * records[n].input_change) / norm(last)),
    computed: (n) => { [before, last, error] = [last, n, 0]; },
  };
}

/**
 * Forecasts: E grows by error rate |t_n - t_i| / sigma_n / ||v_i||, t = log(1 + sigma), and gaps grow by one evaluation.
 */
function forecast(records) {
  const t = records.map(({ sigma }) => Math.log1p(sigma));
  const rates = [];
  let seen = null;
  records.forEach((record, n) => {
    if (record.computed) {
      seen = n;
    } else if (record.error > 0 && record.sigma > 0 && seen !== null && rates.at(-1)?.[0] !== seen) {
      const distance = Math.abs(t[n] - t[seen]);
      if (distance > 0) rates.push([seen, (record.error * record.sigma * record.output_norm) / distance]);
    }
  });
  const errorRate = curve(rates);
  const norm = curve(records.flatMap((record, n) => (record.computed ? [[n, record.output_norm]] : [])));
  if (!errorRate || !norm) return null;
  let last = null, longest = 1, error = 0;
  return {
    error: (n, skipped) =>
      skipped >= longest
        ? NaN
        : (error += (errorRate(last) * Math.abs(t[n] - t[last])) / records[n].sigma / norm(last)),
    computed: (n, skipped) => { [last, longest, error] = [n, skipped + 1, 0]; },
  };
}

/** By predictor, as in easycache_core/predictors.py. */
const RULES = { reuse, forecast };

/** A function through [[place, value], ...], on a line between two, constant beyond the ends; null without any. */
function curve(points) {
  const known = points.filter(([, value]) => Number.isFinite(value));
  if (!known.length) return null;
  return (at) => {
    const next = known.findIndex(([place]) => place >= at);
    if (next === -1) return known.at(-1)[1];
    if (next === 0) return known[0][1];
    const [[x0, y0], [x1, y1]] = [known[next - 1], known[next]];
    return y0 + ((y1 - y0) * (at - x0)) / (x1 - x0);
  };
}
