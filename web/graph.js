/** Where nodes are: in the live graph, and in one that was queued. Execution ids are as the server's: "5", "12:5". */

/** Every node of a graph and of the subgraphs in it. */
export function* allNodes(graph) {
  yield* graph?.nodes ?? [];
  for (const subgraph of graph?.subgraphs?.values() ?? []) yield* subgraph.nodes;
}

/** The live node of that execution id; undefined if the graph has none. */
export function nodeAt(graph, id) {
  let node;
  for (const part of id.split(":")) {
    node = (node ? node.subgraph : graph)?.getNodeById(part);
    if (!node) return undefined;
  }
  return node;
}

/** The same in a workflow as it is saved. */
export function savedNodeAt(workflow, id) {
  const subgraphs = workflow.definitions?.subgraphs ?? [];
  let node;
  for (const part of id.split(":")) {
    const graph = node ? subgraphs.find((subgraph) => subgraph.id === node.type) : workflow;
    node = graph?.nodes?.find((candidate) => String(candidate.id) === part);
    if (!node) return undefined;
  }
  return node;
}

const [MUTED, BYPASSED] = [2, 4]; // a node's mode
const SUBGRAPH_OUTPUT = -20; // target of links that lead out of a subgraph; a text in newer frontends
const MODEL = ["MODEL", "*"]; // what hands a model on: reroutes have no type of their own
const SAMPLED = ["LATENT", "GUIDER", "IMAGE", "VIDEO", "AUDIO"]; // what a node makes that samples with its model

/**
 * Whether whatever samples with a node's MODEL gets it from another node of the same kind behind it. readers: kinds of
 * nodes that only look at a model.
 */
export function followed(root, node, readers) {
  const seen = new Set([node]);
  const ahead = modelReceivers(root, node);
  let another = false;
  while (ahead.length) {
    const next = ahead.pop();
    if (seen.has(next) || next.mode === MUTED) continue;
    seen.add(next);
    const active = next.mode !== BYPASSED;
    if (active && next.comfyClass === node.comfyClass) another = true;
    else if (active && samples(next) && !readers.includes(next.comfyClass)) return false;
    else ahead.push(...modelReceivers(root, next));
  }
  return another;
}

const samples = ({ outputs }) => outputs?.some(({ type }) => SAMPLED.includes(type));

const modelReceivers = (root, node) =>
  (node.outputs ?? [])
    .filter(({ type }) => MODEL.includes(type))
    .flatMap(({ links }) => receivers(root, node.graph, links));

/** The nodes that links lead to, into subgraphs and out of them. */
function receivers(root, graph, links) {
  return [...(links ?? [])].flatMap((id) => {
    const link = graph?.getLink(id); // a node that is being moved into a subgraph has no graph
    if (!link) return [];
    if (Number(link.target_id) === SUBGRAPH_OUTPUT) {
      const around = [...allNodes(root)].filter(({ subgraph }) => subgraph === graph);
      return around.flatMap((node) => receivers(root, node.graph, node.outputs[link.target_slot]?.links));
    }
    const node = graph.getNodeById(link.target_id);
    const inside = node?.subgraph && node.mode !== MUTED && node.mode !== BYPASSED;
    if (inside) return receivers(root, node.subgraph, node.subgraph.inputs[link.target_slot]?.linkIds);
    return node ? [node] : [];
  });
}
