/**
 * Settings to start from. A preset is filled into the node's widgets and nothing else; what is queued is what they show.
 * No DOM here.
 */

export const CUSTOM = "custom";

const DEFAULT = {
  threshold: 0.05,
  warmup_steps: 5,
  predictor: "forecast",
  target_speedup: 0,
  max_consecutive_skips: 0,
  start_percent: 0,
  end_percent: 1,
};
const MEASURED = "Measured on this pack's two tiny models at 50 steps (README, Figures), not at full size or on a GPU.";

/** name: in the drop-down. about: where the settings come from. widgets: values by widget. */
export const PRESETS = [
  {
    name: "default: Wan 2.2, Open-Sora, FLUX, images",
    about: "The node's defaults. No settings were published or measured for these models at full size.",
    widgets: DEFAULT,
  },
  {
    name: "faithful, 2.2x",
    about: `Computes 23 of 50 steps. ${MEASURED}`,
    widgets: { ...DEFAULT, target_speedup: 2.2 },
  },
  {
    name: "fast, 3.4x",
    about: `Computes 15 of 50 steps. ${MEASURED}`,
    widgets: { ...DEFAULT, target_speedup: 3.4 },
  },
  {
    name: "preview, 4.6x",
    about: `Computes 11 of 50 steps. ${MEASURED}`,
    widgets: { ...DEFAULT, target_speedup: 4.6 },
  },
  {
    name: "HunyuanVideo, paper",
    about: "The EasyCache paper's, for 50 steps without CFG. Its authors report 2.2x; not measured here.",
    widgets: { ...DEFAULT, predictor: "reuse", threshold: 0.025, warmup_steps: 5 },
  },
  {
    name: "Wan 2.1, paper",
    about: "The EasyCache paper's, for 50 steps with CFG. Its authors report 2.5x; not measured here.",
    widgets: { ...DEFAULT, predictor: "reuse", threshold: 0.05, warmup_steps: 10 },
  },
];

/** The preset whose values these are; undefined if they are nobody's. values: by widget. */
export function presetOf(values) {
  return PRESETS.find(({ widgets }) => Object.entries(widgets).every(([name, value]) => same(values[name], value)));
}

// Sliders leave rounding behind.
const same = (a, b) => a === b || (typeof b === "number" && Math.abs(a - b) < 1e-6);
