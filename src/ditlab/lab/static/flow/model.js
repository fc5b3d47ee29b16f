/** What the flow diagram draws: the nodes of /flow sorted into a transformer's parts, where they are one. */

/**
 * @typedef {{name: string, kind: string, title: string, block: number | null, in: number[][], out: number[],
 *   parameters: number, macs: number, ms: number, section: string | null, class?: string, gated?: boolean,
 *   steered?: boolean}} Node  `steered`: it depends on what the network is told
 * @typedef {{nodes: Node[], parameters: number, macs: number, ms: number, between: number, tokens?: Tokens}} Flow
 * @typedef {{sequence: string[], cross: string[]}} Tokens  conditions that join the patches; that cross-attention reads
 * @typedef {{index: number, modulation: Node, attention: Node, cross: Node | null, mlp: Node, whole: Node}} Block
 * @typedef {{input: Node, conditions: Node[], patch: Node, positions: Node | null, join: Node | null, blocks: Block[],
 *   cut: Node | null, final: Node, unpatchify: Node | null, output: Node, tokens: Tokens}} Transformer
 */

/** One node that stands for several: sums, and the shapes at both ends.
 * @param {Node[]} nodes @param {string} name @param {string} title @returns {Node} */
function sum(nodes, name, title) {
  const total = (/** @type {"parameters" | "macs" | "ms"} */ key) => nodes.reduce((all, node) => all + node[key], 0);
  const last = nodes[nodes.length - 1];
  const stream = nodes.find((node) => node.kind === "attention") ?? nodes[0];
  return {
    name, title, kind: "block", block: nodes[0].block, gated: nodes[0].gated, in: stream.in, out: last.out, section: null,
    parameters: total("parameters"), macs: total("macs"), ms: total("ms"),
  };
}

/** @param {Node[]} nodes @returns {Block[] | null} null unless every block has the three parts of a DiT block */
function blocksOf(nodes) {
  /** @type {Map<number, Node[]>} */
  const byBlock = new Map();
  for (const node of nodes) {
    if (node.block !== null && node.block !== undefined) byBlock.set(node.block, [...(byBlock.get(node.block) ?? []), node]);
  }
  const blocks = [];
  for (const [index, parts] of [...byBlock].sort((a, b) => a[0] - b[0])) {
    const part = (/** @type {string} */ kind) => parts.find((node) => node.kind === kind);
    const [modulation, attention, mlp] = [part("modulation"), part("attention"), part("mlp")];
    if (!modulation || !attention || !mlp) return null;
    blocks.push({ index, modulation, attention, cross: part("cross") ?? null, mlp, whole: sum(parts, `blocks.${index}`, `Block ${index}`) });
  }
  return blocks.length ? blocks : null;
}

/** What a network is told: a box each. */
const TOLD = ["time", "label", "interval", "scalar", "text"];

/** @param {Flow} flow @returns {Transformer | null} null for a network that is no diffusion transformer */
export function transformer(flow) {
  const find = (/** @type {string} */ kind) => flow.nodes.find((node) => node.kind === kind) ?? null;
  const [input, time, patch, final, output] = ["input", "time", "patch_embed", "final", "output"].map(find);
  const blocks = blocksOf(flow.nodes);
  if (!input || !time || !patch || !final || !output || !blocks) return null;
  return {
    input, patch, final, output, blocks, conditions: flow.nodes.filter((node) => TOLD.includes(node.kind)),
    positions: find("positions"), join: find("join"), cut: find("cut"), unpatchify: find("unpatchify"),
    tokens: flow.tokens ?? { sequence: [], cross: [] },
  };
}

/** Do the conditions reach the blocks and the final layer? Or are they tokens of the sequence alone?
 * @param {Transformer} model */
export const steers = ({ blocks, final }) => Boolean(final.steered) || blocks.some(takesConditions);

/** @param {Block} block */
export const takesConditions = ({ modulation, cross }) => Boolean(modulation.steered) || cross !== null;

/** Blocks in the order drawn: the open one in detail, runs of more than `few` others as one stack.
 * @param {Block[]} blocks @param {number} open @param {boolean} all @param {number} [few]
 * @returns {{kind: "open" | "closed" | "stack", blocks: Block[]}[]} */
export function arrange(blocks, open, all, few = 4) {
  /** @type {{kind: "open" | "closed" | "stack", blocks: Block[]}[]} */
  const groups = [];
  const side = (/** @type {Block[]} */ run) => {
    if (all || run.length <= few) groups.push(...run.map((block) => ({ kind: /** @type {const} */ ("closed"), blocks: [block] })));
    else groups.push({ kind: "stack", blocks: run });
  };
  side(blocks.slice(0, open));
  groups.push({ kind: "open", blocks: [blocks[open]] });
  side(blocks.slice(open + 1));
  return groups;
}

/** What goes in and what comes out: "16×64 → 16×64". @param {Node} node */
export const shapes = (node) => [node.in.map(shapeText).filter(Boolean).join(", "), outText(node)].filter(Boolean).join(" → ");

/** Shape without the batch: "16×64".
 * @param {number[] | undefined} shape @returns {string} */
export const shapeText = (shape) => (shape && shape.length > 1 ? shape.slice(1).join("×") : shape?.join("×") ?? "");

/** What a node gives, without the batch. A modulation gives several vectors, and the batch comes second.
 * @param {Node} node @returns {string} */
export const outText = (node) => (node.kind === "modulation" && node.out.length === 3 ? `${node.out[0]}×${node.out[2]}` : shapeText(node.out));

/** 252,496 → "252 k".
 * @param {number} value @returns {string} */
export function short(value) {
  const units = ["", " k", " M", " G", " T"];
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit ? Number(value.toPrecision(3)) : Math.round(value)}${units[unit]}`;
}

/** @param {number} ms @returns {string} */
export const milliseconds = (ms) => (ms >= 1 ? `${ms.toFixed(2)} ms` : `${Math.round(ms * 1000)} µs`);
