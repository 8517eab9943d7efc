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
const measured = (speedup) =>
  `${[20, 50].map((steps) => `${Math.ceil(steps / speedup)} of ${steps}`).join(", ")} steps (docs/figures.md).`;
const published = (what) => `EasyCache paper (arXiv 2507.02860): 50 steps, ${what}, they report.`;

/** name: in the drop-down. about: what backs the settings, two lines at most. widgets: values by widget. */
export const PRESETS = [
  {
    name: "default",
    about: "The picture decides how much is skipped. Measured with small models: docs/figures.md.",
    widgets: DEFAULT,
  },
  { name: "faithful", about: measured(2.2), widgets: { ...DEFAULT, target_speedup: 2.2 } },
  { name: "fast", about: measured(3.4), widgets: { ...DEFAULT, target_speedup: 3.4 } },
  { name: "preview", about: measured(4.6), widgets: { ...DEFAULT, target_speedup: 4.6 } },
  {
    name: "Wan 2.2 high noise",
    about: "8 of the first 10 steps (docs/figures.md).",
    widgets: { ...DEFAULT, target_speedup: 1.4 },
  },
  {
    name: "Wan 2.2 low noise",
    about: "5 of the last 10 steps (docs/figures.md).",
    widgets: { ...DEFAULT, target_speedup: 2.1 },
  },
  {
    name: "HunyuanVideo (paper)",
    about: published("no CFG, 2.2x"),
    widgets: { ...DEFAULT, predictor: "reuse", threshold: 0.025, warmup_steps: 5 },
  },
  {
    name: "Wan 2.1 (paper)",
    about: published("CFG, 2.5x"),
    widgets: { ...DEFAULT, predictor: "reuse", threshold: 0.05, warmup_steps: 10 },
  },
];

/** The preset whose values these are; undefined if they are nobody's. values: by widget. */
export function presetOf(values) {
  return PRESETS.find(({ widgets }) =>
    Object.entries(widgets).every(([name, value]) => same(values[name], value)),
  );
}

// Sliders leave rounding behind.
const same = (a, b) => a === b || (typeof b === "number" && Math.abs(a - b) < 1e-6);
