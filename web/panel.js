/** What the browser adds to an EasyCache (Adaptive) node: a drop-down of presets and the chart. */

import { app } from "../../scripts/app.js";
import { Chart } from "./chart.js";
import { CUSTOM, PRESETS, presetOf } from "./presets.js";

const CHART_HEIGHT = 190;
const SETTINGS = Object.keys(PRESETS[0].widgets);

export class Panel {
  #node;
  #preset;
  #chart = new Chart();
  #filling = false;

  constructor(node) {
    this.#node = node;
    for (const widget of this.#settings()) this.#follow(widget);
    this.#preset = node.addWidget("combo", "preset", CUSTOM, (name) => this.#fill(name), {
      values: [...PRESETS.map(({ name }) => name), CUSTOM],
    });
    const chart = node.addDOMWidget("easycache_chart", "easycache_chart", this.#chart.element, {
      getMinHeight: () => CHART_HEIGHT,
    });
    this.#chart.element.addEventListener("wheel", zoom, { passive: false });
    // The first keeps them out of saved workflows, the second out of prompts.
    for (const widget of [this.#preset, chart]) {
      widget.serialize = false;
      widget.options.serialize = false;
    }
  }

  /** run: as in runs.js. */
  show(run) {
    this.#chart.show(run);
    this.refresh();
  }

  /** Look at the widgets' values, which somebody has changed. */
  refresh() {
    const values = Object.fromEntries(this.#settings().map(({ name, value }) => [name, value]));
    const preset = presetOf(values, this.#preset.value);
    const [name, about] = preset ? [preset.name, preset.about] : [CUSTOM, ""];
    this.#filling = true;
    if (this.#preset.value !== name) set(this.#preset, name);
    this.#filling = false;
    this.#preset.tooltip = `Fills in the settings above. ${about}`;
    this.#chart.set(values, about);
  }

  #settings() {
    return this.#node.widgets.filter(({ name }) => SETTINGS.includes(name));
  }

  #follow(widget) {
    const { callback } = widget;
    widget.callback = (...args) => {
      const answer = callback?.apply(widget, args);
      if (!this.#filling) this.refresh();
      return answer;
    };
  }

  #fill(name) {
    if (this.#filling) return;
    this.#filling = true;
    const preset = PRESETS.find((preset) => preset.name === name);
    for (const widget of preset ? this.#settings() : []) set(widget, preset.widgets[widget.name]);
    this.#filling = false;
    this.refresh();
    this.#node.setDirtyCanvas?.(true, true);
  }
}

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
