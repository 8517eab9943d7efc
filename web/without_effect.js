/** Which of the node's widgets change nothing at its present settings, and why. No DOM here. */

const WHEN_SKIPPING = ["warmup_steps", "predictor", "max_consecutive_skips", "start_percent", "end_percent"];

/** {widget: the reason}. settings: values by widget; one that comes over a link is left out. texts: as from textsIn. */
export function withoutEffect({ threshold, target_speedup: target }, { budgetDecides, everythingComputed }) {
  const because = (reason, ...names) => Object.fromEntries(names.map((name) => [name, reason]));
  if (target > 1) return because(budgetDecides, "threshold", "warmup_steps");
  if (target === 1) return because(everythingComputed, "threshold", ...WHEN_SKIPPING);
  if (target === 0 && threshold === 0) return because(everythingComputed, ...WHEN_SKIPPING);
  return {};
}
