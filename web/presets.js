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
const MEASURED = "Measured on our tiny models (README), not on a GPU.";
const UNKNOWN = { about: "The defaults: nothing was published or measured for it.", widgets: DEFAULT };

/** name: in the drop-down. about: where the settings come from, two lines at most. widgets: values by widget. */
export const PRESETS = [
  { name: "default", about: "Forecasts with an error of up to 0.15.", widgets: DEFAULT },
  { name: "faithful", about: `23 of 50 steps. ${MEASURED}`, widgets: { ...DEFAULT, target_speedup: 2.2 } },
  { name: "fast", about: `15 of 50 steps. ${MEASURED}`, widgets: { ...DEFAULT, target_speedup: 3.4 } },
  { name: "preview", about: `11 of 50 steps. ${MEASURED}`, widgets: { ...DEFAULT, target_speedup: 4.6 } },
  {
    name: "HunyuanVideo (paper)",
    about: "The paper's, for 50 steps without CFG: 2.2x, they report. Not measured by us.",
    widgets: { ...DEFAULT, predictor: "reuse", threshold: 0.025, warmup_steps: 5 },
  },
  {
    name: "Wan 2.1 (paper)",
    about: "The paper's, for 50 steps with CFG: 2.5x, they report. Not measured by us.",
    widgets: { ...DEFAULT, predictor: "reuse", threshold: 0.05, warmup_steps: 10 },
  },
  { name: "Wan 2.2", ...UNKNOWN },
  { name: "Open-Sora", ...UNKNOWN },
  { name: "FLUX", ...UNKNOWN },
  { name: "other image models", ...UNKNOWN },
];

/**
 * The preset whose values these are; undefined if they are nobody's. values: by widget. chosen: the name of the one to
 * take where several have them.
 */
export function presetOf(values, chosen) {
  const fitting = PRESETS.filter(({ widgets }) =>
    Object.entries(widgets).every(([name, value]) => same(values[name], value)),
  );
  return fitting.find(({ name }) => name === chosen) ?? fitting[0];
}

// Sliders leave rounding behind.
const same = (a, b) => a === b || (typeof b === "number" && Math.abs(a - b) < 1e-6);
