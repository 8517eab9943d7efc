/**
 * Settings to start from. A preset is filled into the node's widgets and nothing else; what is queued is what they
 * show. No DOM here.
 */

export const CUSTOM = "custom";

const DEFAULT = {
  threshold: 0.15,
  warmup_steps: 2,
  predictor: "forecast",
  target_speedup: 0,
  max_consecutive_skips: 0,
  start_percent: 0,
  end_percent: 1,
};

/** name: in the drop-down; what backs it is in texts.js. widgets: values by widget. */
export const PRESETS = [
  { name: "default", widgets: DEFAULT },
  { name: "faithful", widgets: { ...DEFAULT, target_speedup: 2.2 } },
  { name: "fast", widgets: { ...DEFAULT, target_speedup: 3.4 } },
  { name: "preview", widgets: { ...DEFAULT, target_speedup: 4.6 } },
  { name: "Wan 2.2 high noise", widgets: { ...DEFAULT, target_speedup: 1.4 } },
  { name: "Wan 2.2 low noise", widgets: { ...DEFAULT, target_speedup: 2.1 } },
  { name: "HunyuanVideo (paper)", widgets: { ...DEFAULT, predictor: "reuse", threshold: 0.025, warmup_steps: 5 } },
  { name: "Wan 2.1 (paper)", widgets: { ...DEFAULT, predictor: "reuse", threshold: 0.05, warmup_steps: 10 } },
];

/** The first preset that has these values; undefined if none has. values: by widget; others are not compared. */
export function presetOf(values) {
  return PRESETS.find(({ widgets }) => Object.entries(values).every(([name, value]) => same(widgets[name], value)));
}

// Sliders leave rounding behind.
const same = (a, b) => a === b || (typeof b === "number" && Math.abs(a - b) < 1e-6);
