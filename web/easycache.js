/** The browser's side of the EasyCache (Adaptive) node: live chart, presets, what if, its place in the search. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { allNodes, nodeAt, savedNodeAt } from "./graph.js";
import { Panel } from "./panel.js";
import { Runs } from "./runs.js";

const NODE = "EasyCacheAdaptive";
const EVENT = "easycache.run";
const KEY = "easycache"; // in a node's properties: a random name, under which the node's last run is kept
const MOST_PROMPTS = 200;

const runs = new Runs(window.localStorage);
const panels = new WeakMap(); // by node
const prompts = new Map(); // by id: the keys of its nodes by their execution ids
const early = []; // messages on prompts that may be among those whose answer is on its way
let unanswered = 0;

app.registerExtension({
  name: "EasyCache",

  setup() {
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = new URL("./easycache.css", import.meta.url).href;
    document.head.append(sheet);
    noteWhatIsQueued();
    comeFirstInSearch();
    api.addEventListener(EVENT, ({ detail }) => receive(detail));
  },

  afterConfigureGraph: lookAtAll,

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const panel = new Panel(node);
    panels.set(node, panel);
    node.properties[KEY] = randomKey();
    const { onConfigure, onAdded } = node;
    node.onConfigure = function (...args) {
      onConfigure?.apply(this, args);
      ownKey(this);
      panel.refresh();
    };
    node.onAdded = function (...args) {
      onAdded?.apply(this, args);
      ownKey(this);
    };
    const { onConnectionsChange } = node;
    node.onConnectionsChange = function (...args) {
      onConnectionsChange?.apply(this, args);
      lookAtAll();
    };
    panel.refresh();
  },
});

/**
 * Of names that match alike, the search lists short ones first, and "EasyCacheReport" is shorter than this node's. So
 * this one is scored as if it were called "EasyCache". Scores: kind of match, place + length / 2, length, fuzziness; the
 * second and third are 0 where they do not count.
 */
function comeFirstInSearch() {
  const definition = LiteGraph.registered_node_types[NODE]?.nodeData;
  const prototype = definition && Object.getPrototypeOf(definition);
  const { postProcessSearchScores } = prototype ?? {};
  if (!postProcessSearchScores) return;
  const longer = NODE.length - "EasyCache".length;
  const without = (length) => length && length - longer;
  prototype.postProcessSearchScores = function ([match, place, length, ...others]) {
    const scores = this.name === NODE ? [match, without(place), without(length)] : [match, place, length];
    return postProcessSearchScores.call(this, [...scores, ...others]);
  };
}

function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(6));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const graph = () => app.rootGraph ?? app.graph;

/** What a node shows depends on the nodes of its kind behind it, too. */
function lookAtAll() {
  for (const node of allNodes(graph())) panels.get(node)?.refresh();
}

/** A pasted node comes with the key of its original: give it one of its own, and the original's run to show. */
function ownKey(node) {
  const key = node.properties[KEY];
  for (const other of allNodes(graph())) {
    if (other !== node && other.comfyClass === NODE && other.properties[KEY] === key) {
      node.properties[KEY] = randomKey();
      runs.copy(key, node.properties[KEY]);
      break;
    }
  }
  panels.get(node).show(runs.last(node.properties[KEY]));
}

/**
 * Remember whose nodes a prompt is made of. A run is told by its node's execution id, and by the time it comes another
 * workflow may be open, with another node of that id.
 */
function noteWhatIsQueued() {
  const { queuePrompt } = api;
  api.queuePrompt = function (number, data, ...rest) {
    const answer = queuePrompt.call(this, number, data, ...rest);
    unanswered += 1;
    answer
      .then(({ prompt_id }) => {
        note(prompt_id, data);
        lookAtAll(); // nodes that lie between two of ours do not tell them when their links or modes change
      })
      .catch(() => {}) // refused: nothing to note
      .finally(() => {
        unanswered -= 1;
        early.splice(0).forEach(receive);
      });
    return answer;
  };
}

function note(prompt, { output, workflow }) {
  const ids = Object.keys(output).filter((id) => output[id].class_type === NODE);
  prompts.set(prompt, new Map(ids.map((id) => [id, savedNodeAt(workflow, id)?.properties?.[KEY]])));
  if (prompts.size > MOST_PROMPTS) prompts.delete(prompts.keys().next().value);
}

/** A message of nodes/progress_events.py. */
function receive(message) {
  // The first one may overtake the answer to what was queued. Those on a known prompt wait for no other prompt's answer.
  if (unanswered && !prompts.has(message.prompt)) {
    early.push(message);
    return;
  }
  // Unknown after the page was loaded anew in the midst of a run: then it is most likely of the graph that is open.
  const keys = prompts.get(message.prompt);
  const key = keys ? keys.get(message.node) : nodeAt(graph(), message.node)?.properties[KEY];
  if (!key) return;
  const run = runs.receive(key, message);
  for (const node of allNodes(graph())) {
    if (node.comfyClass === NODE && node.properties[KEY] === key) panels.get(node)?.show(run);
  }
}
