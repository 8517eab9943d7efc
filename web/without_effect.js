/** Which of the node's widgets change nothing at its present settings, and why. No DOM here. */

const BUDGET = "target_speedup decides how many steps are computed. At 0, what is grey has an effect.";
const EVERYTHING = "At these settings every step is computed. What is grey changes nothing.";
const WHEN_SKIPPING = ["warmup_steps", "predictor", "max_consecutive_skips", "start_percent", "end_percent"];

/** {widget: the reason}. settings: values by widget; one that comes over a link is left out. */
export function withoutEffect({ threshold, target_speedup: target }) {
  if (target > 1) return { threshold: BUDGET, warmup_steps: BUDGET };
  if (target > 0) return Object.fromEntries(["threshold", ...WHEN_SKIPPING].map((name) => [name, EVERYTHING]));
  if (target === 0 && threshold === 0) return Object.fromEntries(WHEN_SKIPPING.map((name) => [name, EVERYTHING]));
  return {};
}
