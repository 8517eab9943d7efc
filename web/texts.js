/** What the node says in the browser, by language. No DOM here. */

import { inChinese } from "./server_texts.js";
import { budgetOf } from "./what_if.js";

const counts = (speedup, text) => [20, 50].map((steps) => text(budgetOf(steps, speedup), steps));
const measured = ({ target_speedup }) =>
  `${counts(target_speedup, (computed, steps) => `${computed} of ${steps}`).join(", ")} steps (docs/figures.md).`;
const measuredZh = ({ target_speedup }) =>
  `${counts(target_speedup, (computed, steps) => `${steps} 步中的 ${computed} 步`).join("，")}（docs/figures.md）。`;
const published = (what) => `EasyCache paper (arXiv 2507.02860): 50 steps, ${what}, they report.`;
const publishedZh = (what) => `EasyCache 论文（arXiv 2507.02860）报告：50 步，${what}。`;
const PRESET_NAMES_ZH = {
  default: "默认",
  faithful: "忠实",
  fast: "快速",
  preview: "预览",
  "Wan 2.2 high noise": "Wan 2.2 高噪声",
  "Wan 2.2 low noise": "Wan 2.2 低噪声",
  "HunyuanVideo (paper)": "HunyuanVideo（论文）",
  "Wan 2.1 (paper)": "Wan 2.1（论文）",
  custom: "自定义",
};

const en = {
  waiting: "Run to see which steps are computed and which are skipped.",
  unconnected: "Connect the model to this node, and this node's MODEL to the sampler.",
  followed: "Another EasyCache (Adaptive) follows; that one counts.",
  nothingSampled: "Nothing was sampled.",

  // The chart. state: "running", "done" or "stopped"; single: whether there is one evaluation per step.
  summary: ({ speedup, computed, evaluations, single, state }) =>
    `${speedup}${computed} of ${evaluations} ${single ? "steps" : "evaluations"} computed` +
    { running: "…", done: "", stopped: ", stopped" }[state],
  speedup: (times) => `${times}x, `,
  computed: (count) => `computed ${count}`,
  skipped: (count) => `skipped ${count}`,
  rate: (largest) => `rate to ${largest}`,
  error: (largest) => `error to ${largest}`,
  computedSoFar: "computed so far",
  budget: (count) => `budget ${count}`,
  threshold: (value) => `threshold ${value}`,
  evaluation: (step, computed) => `step ${step}: ${computed ? "computed" : "skipped"}`,
  numbers: { sigma: "sigma", rate: "rate", error: "error" },
  list: ", ",
  gap: " ", // between sentences

  // What there is to say of a run. The figures of the estimates are those of benchmarks/results/closeness.csv and
  // what_if.csv.
  nothingSkipped: (reason) => `Nothing was skipped: ${reason}.`,
  note: (sentence) => sentence,
  closeness: (from, to) => `${from} to ${to} dB of the uncached latent`,
  sentence: (text, estimated) => `${text}${estimated ? " (estimate)" : ""}.`,
  whatIf: (about) => `What if: ${about}.`,
  whatIfAt: (place, answer) => `What if, ${place}: ${answer}`,
  targetSpeedup: (value) => `target_speedup ${value}`,
  count: ({ computed, evaluations, exact }) =>
    `${exact ? "" : "about "}${computed} of ${evaluations} (${(evaluations / computed).toFixed(1)}x)`,
  noEstimate: {
    unrecorded: () => "the run was not recorded",
    windowed: () => "no estimate with start_percent or end_percent",
    otherPredictor: (predictor) => `no estimate before a run with ${predictor}`,
    unknownPredictor: (predictor) => `no estimate for ${predictor}`,
    nothingSkipped: () => "nothing was skipped by a threshold in that run, so there is nothing to go by",
  },
  estimates:
    "Estimated from the last run's own numbers. dB: how close the final latent is to that of the same run without the " +
    "cache (PSNR); three in four estimates held on small models. What if: the run's rule is " +
    "replayed at the node's settings; on the bundled model it was off by one step in the mean and eight at most.",

  // Settings.
  startAboveEnd: "start_percent is above end_percent: nothing could ever be skipped, and Run fails.",
  targetBelowOne: "target_speedup must be 0 (off), or 1 to 10: Run fails.",
  budgetDecides: "target_speedup decides how many steps are computed. At 0, what is grey has an effect.",
  everythingComputed: "At these settings every step is computed. What is grey changes nothing.",

  // Presets. presetName: as the drop-down shows a name. Each text says in two lines at most what backs the settings.
  preset: "preset",
  presetFills: "Fills in the settings below.",
  presetName: undefined, // as it is
  presets: {
    default: () => "The picture decides how much is skipped. Measured with small models: docs/figures.md.",
    faithful: measured,
    fast: measured,
    preview: measured,
    "Wan 2.2 high noise": () => "8 of the first 10 steps (docs/figures.md).",
    "Wan 2.2 low noise": () => "5 of the last 10 steps (docs/figures.md).",
    "HunyuanVideo (paper)": () => published("no CFG, 2.2x"),
    "Wan 2.1 (paper)": () => published("CFG, 2.5x"),
  },
};

const zh = {
  waiting: "运行后可以看到哪些步是计算的，哪些是跳过的。",
  unconnected: "请把模型接到本节点，再把本节点输出的模型接到采样器。",
  followed: "后面还有一个 EasyCache（自适应），由它起作用。",
  nothingSampled: "没有采样。",

  summary: ({ speedup, computed, evaluations, single, state }) =>
    `${speedup}${evaluations} ${single ? "步" : "次"}中计算 ${computed} ${single ? "步" : "次"}` +
    { running: "…", done: "", stopped: "，已停止" }[state],
  speedup: (times) => `${times}x，`,
  computed: (count) => `计算 ${count}`,
  skipped: (count) => `跳过 ${count}`,
  rate: (largest) => `变换率至 ${largest}`,
  error: (largest) => `误差至 ${largest}`,
  computedSoFar: "已计算",
  budget: (count) => `预算 ${count}`,
  threshold: (value) => `阈值 ${value}`,
  evaluation: (step, computed) => `第 ${step} 步：${computed ? "计算" : "跳过"}`,
  numbers: { sigma: "sigma", rate: "变换率", error: "误差" },
  list: "，",
  gap: "",

  nothingSkipped: (reason) => `没有跳过任何步：${inChinese(reason)}。`,
  note: inChinese,
  closeness: (from, to) => `与未缓存的 latent 的 PSNR 为 ${from} 到 ${to} dB`,
  sentence: (text, estimated) => `${text}${estimated ? "（估计）" : ""}。`,
  whatIf: (about) => `假设：${about}。`,
  whatIfAt: (place, answer) => `假设${place}：${answer}`,
  targetSpeedup: (value) => `目标加速比 ${value}`,
  count: ({ computed, evaluations, exact }) =>
    `${exact ? "" : "约 "}${computed} / ${evaluations}（${(evaluations / computed).toFixed(1)}x）`,
  noEstimate: {
    unrecorded: () => "那次采样没有记录",
    windowed: () => "使用起始百分比或结束百分比时没有估计",
    otherPredictor: (predictor) => `用 ${predictor} 运行一次之后才有估计`,
    unknownPredictor: (predictor) => `${predictor} 没有估计`,
    nothingSkipped: () => "那次采样没有按阈值跳过任何步，因此没有估计的依据",
  },
  estimates:
    "根据最近一次采样自身的数字估计。dB：最终 latent 与不用缓存的同一次采样的有多接近（PSNR）；在小模型上，" +
    "四分之三的估计成立。假设：按节点现在的设置重演那次采样的规则；在附带的模型上平均相差一步，最多八步。",

  startAboveEnd: "起始百分比高于结束百分比：什么都不能跳过，运行会失败。",
  targetBelowOne: "目标加速比应为 0（关闭），或 1 到 10：运行会失败。",
  budgetDecides: "由目标加速比决定计算多少步。设为 0 时，灰色的项才起作用。",
  everythingComputed: "在这些设置下每一步都会计算。灰色的项不起作用。",

  preset: "预设",
  presetFills: "填写下面的设置。",
  presetName: (name) => PRESET_NAMES_ZH[name] ?? name,
  presets: {
    default: () => "由画面决定跳过多少。用小模型测量：docs/figures.md。",
    faithful: measuredZh,
    fast: measuredZh,
    preview: measuredZh,
    "Wan 2.2 high noise": () => "前 10 步中计算 8 步（docs/figures.md）。",
    "Wan 2.2 low noise": () => "后 10 步中计算 5 步（docs/figures.md）。",
    "HunyuanVideo (paper)": () => publishedZh("无 CFG，2.2x"),
    "Wan 2.1 (paper)": () => publishedZh("有 CFG，2.5x"),
  },
};

/** locale: the frontend's, as "en", "zh" or "zh-TW". */
export const textsIn = (locale) => (/^zh\b/.test(locale) ? zh : en);
