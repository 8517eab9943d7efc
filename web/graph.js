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
