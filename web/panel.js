/** What the browser adds to an EasyCache (Adaptive) node: presets, grey for what has no effect, and the chart. */

import { app } from "../../scripts/app.js";
import { Chart } from "./chart.js";
import { followed } from "./graph.js";
import { CUSTOM, PRESETS, presetOf } from "./presets.js";
import { refused } from "./refused.js";
import { textsIn } from "./texts.js";
import { withoutEffect } from "./without_effect.js";

const CHART_HEIGHT = 190;
const SUBGRAPH = -10; // origin of links from the inputs of the subgraph around; a text in newer frontends
const READERS = ["EasyCacheReport"]; // it hands a latent on, but samples nothing
const SETTINGS = Object.keys(PRESETS[0].widgets);

export class Panel {
  #node;
  #preset;
  #chart = new Chart();
  #filling = false;
  #target = 0; // target_speedup, when it was last looked at

  constructor(node) {
    this.#node = node;
    for (const widget of this.#settings()) this.#follow(widget);
    this.#preset = node.addWidget("combo", "preset", CUSTOM, (name) => this.#fill(name), {
      values: [...PRESETS.map(({ name }) => name), CUSTOM],
    });
    const chart = node.addDOMWidget("easycache_chart", "easycache_chart", this.#chart.element, {
      getMinHeight: () => CHART_HEIGHT,
      hideInPanel: true, // the right panel would show an empty row, and some give the chart that row's width for good
      hideOnZoom: false, // it can be read from further away than text
    });
    this.#chart.element.addEventListener("wheel", zoom, { passive: false });
    // The first keeps them out of saved workflows, the second out of prompts.
    for (const widget of [this.#preset, chart]) {
      widget.serialize = false;
      widget.options.serialize = false;
    }
    this.#presetFirst();
  }

  /** run: as in runs.js. */
  show(run) {
    this.#chart.show(run);
    this.refresh();
  }

  /** Look at the widgets' values, which somebody has changed. */
  refresh() {
    const values = Object.fromEntries(this.#unlinked().map(({ name, value }) => [name, value]));
    this.#target = values.target_speedup ?? this.#target;
    const preset = this.#mayBePreset() ? presetOf(values) : undefined;
    const name = preset?.name ?? CUSTOM;
    this.#filling = true;
    if (this.#preset.value !== name) set(this.#preset, name);
    this.#filling = false;
    const texts = textsIn(app.extensionManager?.setting.get("Comfy.Locale"));
    // A preset's text speaks of all of its settings: it may be wrong where some are not known.
    const known = Object.keys(values).length === SETTINGS.length;
    const backing = preset && known ? texts.presets[preset.name](preset.widgets) : "";
    this.#preset.label = texts.preset;
    this.#preset.options.getOptionLabel = texts.presetName; // some frontends show the names as they are
    this.#preset.tooltip = [texts.presetFills, backing].filter(Boolean).join(" ");
    const why = withoutEffect(values, texts);
    for (const widget of this.#settings()) {
      widget.disabled = widget.name in why;
      widget.tooltip = why[widget.name];
    }
    const about = [backing, Object.values(why)[0]].filter(Boolean).join(" ");
    this.#chart.set(values, {
      texts,
      about,
      wrong: refused(values, texts),
      replaced: followed(app.rootGraph ?? app.graph, this.#node, READERS),
      connected: this.#connected(),
    });
  }

  #connected() {
    return this.#node.isInputConnected(0) && this.#node.isOutputConnected(0);
  }

  #settings() {
    return this.#node.widgets.filter(({ name }) => SETTINGS.includes(name));
  }

  /** Those whose value is the widget's: not that of another node, or of the subgraph around. */
  #unlinked() {
    return this.#settings().filter(({ name }) => !this.#linkTo(name));
  }

  /** Whether the settings may be those of a preset: other nodes may give any value, the subgraph around has a face. */
  #mayBePreset() {
    return this.#settings().every(({ name }) => Number(this.#linkTo(name)?.origin_id ?? SUBGRAPH) === SUBGRAPH);
  }

  /** What a widget gets its value by, if by a link. */
  #linkTo(name) {
    const input = this.#node.inputs?.find(({ widget }) => widget?.name === name);
    return input?.link == null ? undefined : this.#node.graph?.getLink(input.link);
  }

  /** On top, without moving the saved values: some frontends leave a hole for what is not saved. */
  #presetFirst() {
    const { widgets, onSerialize } = this.#node;
    this.#node.widgets = [this.#preset, ...widgets.filter((widget) => widget !== this.#preset)];
    this.#node.onSerialize = function (saved, ...rest) {
      if (saved.widgets_values) saved.widgets_values = Object.values(saved.widgets_values);
      return onSerialize?.call(this, saved, ...rest);
    };
  }

  #follow(widget) {
    const { callback } = widget;
    widget.callback = (...args) => {
      const answer = callback?.apply(widget, args);
      const allowed = widget.name === "target_speedup" ? allowedTarget(widget.value, this.#target) : widget.value;
      if (allowed !== widget.value) queueMicrotask(() => set(widget, allowed)); // whoever changed it is through then
      else if (!this.#filling) this.refresh();
      return answer;
    };
  }

  #fill(name) {
    if (this.#filling) return;
    this.#filling = true;
    const preset = PRESETS.find((preset) => preset.name === name);
    for (const widget of preset ? this.#unlinked() : []) set(widget, preset.widgets[widget.name]);
    this.#filling = false;
    this.refresh();
    this.#node.setDirtyCanvas?.(true, true);
  }
}

/** Nothing lies between 0, which is off, and 1: a step up from there leads to 1, and one down to 0. */
const allowedTarget = (value, before) => (value > 0 && value < 1 ? Number(before < 1) : value);

/** What lies over the classic canvas keeps the wheel from it; Nodes 2.0 passes it on itself. */
function zoom(event) {
  if (window.LiteGraph.vueNodesMode) return;
  event.preventDefault();
  app.canvas.processMouseWheel(event);
}

/** Both ways of showing nodes learn of a value only by its callback. */
function set(widget, value) {
  widget.value = value;
  widget.callback?.(value);
}
