/**
 * Chinese for what the server says of a run in English: why nothing was skipped, and its notes (nodes/reasons.py,
 * nodes/summary.py). No DOM here.
 *
 * An entry is [English, Chinese]; what stands for {name} is put in its place, in Chinese where it is an entry itself.
 * The first entry that a sentence is an instance of counts.
 */

const ZH = [
  // nodes/reasons.py: nothing was skipped, and the settings are not to blame.
  ["the latent or the network's output is NaN or inf", "latent 或网络的输出为 NaN 或 inf"],
  [
    "its guider or sampler differentiates through the network, which no prediction can stand in for",
    "引导器或采样器要对网络求梯度，这是预测无法代替的",
  ],
  [
    "it asks about parts of the latent, one after the other, or at another size",
    "每次只计算 latent 的一部分，一块接着一块，或换了一种尺寸",
  ],
  [
    "the latent, or all of its noise, is another one at nearly every evaluation",
    "几乎每次计算都换了另一个 latent，或换掉了它的全部噪声",
  ],
  ["what is asked is new at every evaluation", "每次要计算的都是新的内容"],
  ["the latent that is asked about is turned or moved from step to step", "要计算的 latent 逐步被翻转或移动"],
  [
    "its context windows move from step to step, and answer otherwise in each place, which nothing forecasts: with " +
      "context_schedule standard_static more can be skipped, and the result is closer",
    "上下文窗口逐步移动，在每个位置的结果都不同，这无法预测：把 context_schedule 改为 standard_static，可以跳过更多步，结果也更接近",
  ],
  [
    "prompts, options, keyframes or strengths of what is asked change at nearly every step",
    "提示词、选项、关键帧或强度几乎每一步都在变化",
  ],
  ["the network's weights change at nearly every step", "网络的权重几乎每一步都在变化"],
  [
    "the network keeps what one call leaves for the next, in its {attribute}",
    "网络每次调用都会在自身的 {attribute} 中为下一次留下内容",
  ],
  ["the network keeps what one call leaves for the next, in {place}", "网络每次调用都会在 {place} 中为下一次留下内容"],
  [
    "{module} has replaced ComfyUI's calc_cond_batch, where the node sees what is asked",
    "{module} 替换了 ComfyUI 的 calc_cond_batch，而本节点正是在那里看到要计算什么",
  ],
  [
    "a ControlNet ({controlnet}) decides by itself at which noise levels it changes",
    "有一个 ControlNet（{controlnet}）自行决定在哪些噪声水平上变化",
  ],
  [
    "{count} prompts or latents take turns in {evaluations} evaluations, too few for each",
    "{count} 个提示词或 latent 轮流占用 {evaluations} 次计算，每个分到的太少",
  ],

  // More was computed than target_speedup allows.
  ["each of them had to be computed, {why}", "每次计算都必须进行，{why}"],
  ["more was computed than target_speedup allows, {why}", "计算的次数多于目标加速比所允许的，{why}"],
  ["as prompts or latents that take turns have a budget each", "因为轮流计算的提示词或 latent 各有各的预算"],
  ["as nothing can be predicted from NaN or inf", "因为从 NaN 或 inf 什么也预测不出"],
  ["as the first and the last one are computed", "因为第一次和最后一次总会计算"],
  ["as what was asked could not be predicted from what was asked before", "因为要计算的内容无法由先前的计算来预测"],
  ["as the sampler took fewer evaluations than its schedule has steps", "因为采样器的计算次数少于日程的步数"],
  [
    "as what may be the last one is computed, and nothing told how many there would be",
    "因为可能是最后一次的都会计算，而事先无从得知总共有多少次",
  ],

  // nodes/summary.py: nothing was skipped at these settings.
  ["threshold is 0", "阈值为 0"],
  [
    "each run starts with an empty cache, so its first {steps} always computed; sample in fewer, longer runs to " +
      "skip some",
    "每次采样都从空的缓存开始，因此{steps}总是计算；把采样合并成更少、更长的几次，才能跳过一些步",
  ],
  ["step is", "第一步"],
  ["two steps are", "前两步"],
  [
    "the run has two steps, and the first and the last one are always computed",
    "这次采样只有两步，而第一步和最后一步总是计算",
  ],
  ["target_speedup {target} allows each of them to be computed", "目标加速比为 {target} 时，允许每次都计算"],
  [
    "with {steps} steps hardly anything can be skipped: {computed} always computed, and at the {left} left the error " +
      "reached the threshold; {advice}",
    "只有 {steps} 步时几乎没有可跳过的：{computed}总是计算，而在剩下的{left}，误差达到了阈值；{advice}",
  ],
  ["the first {count} and the last are", "前 {count} 步和最后一步"],
  ["the first {count} are", "前 {count} 步"],
  ["one", "一步"],
  ["two", "两步"],
  ["the error reached the threshold at every step{between}; {advice}", "{between}误差在每一步都达到了阈值；{advice}"],
  [" between start_percent {start} and end_percent {end}", "在起始百分比 {start} 与结束百分比 {end} 之间，"],
  ["widen them", "请放宽这一范围"],
  ["widen them or raise threshold", "请放宽这一范围，或调高阈值"],
  ["set target_speedup to skip some", "要跳过一些步，请设置目标加速比"],
  ["raise threshold, or set target_speedup, to skip some", "要跳过一些步，请调高阈值或设置目标加速比"],
  ["take more steps, or set target_speedup to skip some", "要跳过一些步，请增加步数或设置目标加速比"],
  [
    "take more steps, or raise threshold, or set target_speedup, to skip some",
    "要跳过一些步，请增加步数、调高阈值或设置目标加速比",
  ],
  ["the schedule is still in its first {count} steps (warmup_steps)", "日程仍在最前面的 {count} 步（预热步数）之内"],
  [
    "the run has {steps} step{s}, of which the first {count} (warmup_steps) and the last are always computed",
    "这次采样有 {steps} 步，而前 {count} 步（预热步数）和最后一步总是计算",
  ],
  [
    "at no step{between} could an error be estimated: the first ones are computed, and so are the last ones and " +
      "those at which something changes; {advice}",
    "{between}没有一步可以估计误差：最前面的步、最后面的步和有变化的步都会计算；{advice}",
  ],
  ["widen them, or take more steps, to skip some", "要跳过一些步，请放宽这一范围，或增加步数"],
  ["of more steps some can be skipped", "步数更多时可以跳过一些"],

  // Notes.
  [
    "the sampler chooses its steps by the answers, and takes more of them where they are forecast: uncached it may " +
      "need fewer evaluations than these",
    "采样器按网络的回答选择步数，回答由预测代替时会走更多步：不用缓存时，需要的计算次数可能比这更少",
  ],
  [
    "the sampler leaves out {count} evaluations of its own accord: two caches add up their errors, so use one of them",
    "采样器自行省去了 {count} 次计算：两个缓存的误差会相加，请只用其中一个",
  ],
  [
    "the last evaluation was predicted, as nothing told that it was the last",
    "最后一次计算是预测的，因为事先无从得知它是最后一次",
  ],
  [
    "the sampler adds noise, or moves the latent as noise does, which nothing forecasts: {effect}",
    "采样器会加噪声，或像噪声那样移动 latent，这无法预测：{effect}",
  ],
  ["{effect}, and how close it is cannot be estimated", "{effect}，而且无法估计有多接近"],
  ["with target_speedup the result may drift", "使用目标加速比时，结果可能会偏离"],
  ["less is skipped", "跳过的步更少"],
].map(([english, chinese]) => [pattern(english), chinese]);

/** A reason, or a note, which is a sentence with a full stop; as it is if it is not known here. */
export function inChinese(sentence) {
  if (!sentence.endsWith(".")) return part(sentence);
  const said = sentence[0].toLowerCase() + sentence.slice(1, -1);
  const chinese = part(said);
  return chinese === said ? sentence : `${chinese}。`;
}

function part(english) {
  for (const [sentences, chinese] of ZH) {
    const found = sentences.exec(english);
    if (found) return chinese.replace(/{(\w+)}/g, (_, name) => part(found.groups[name]));
  }
  return english;
}

/** Of all that an entry's English may stand for. */
function pattern(english) {
  const escaped = english.replace(/[.()]/g, "\\$&");
  return new RegExp(`^${escaped.replace(/{(\w+)}/g, "(?<$1>.*?)")}$`);
}
