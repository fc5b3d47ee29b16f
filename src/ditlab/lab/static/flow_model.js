/** What the flow diagram draws: the nodes of /flow sorted into a transformer's parts, where they are one. */

/**
 * @typedef {{name: string, kind: string, title: string, block: number | null, in: number[][], out: number[],
 *   parameters: number, macs: number, ms: number, section: string | null}} Node
 * @typedef {{nodes: Node[], parameters: number, macs: number, ms: number}} Flow
 * @typedef {{index: number, modulation: Node, attention: Node, mlp: Node, whole: Node}} Block
 * @typedef {{input: Node, time: Node, label: Node | null, patch: Node, positions: Node | null, blocks: Block[],
 *   final: Node, unpatchify: Node | null, output: Node}} Transformer
 */

/** One node that stands for several: sums, and the shapes at both ends.
 * @param {Node[]} nodes @param {string} name @param {string} title @returns {Node} */
function sum(nodes, name, title) {
  const total = (/** @type {"parameters" | "macs" | "ms"} */ key) => nodes.reduce((all, node) => all + node[key], 0);
  const last = nodes[nodes.length - 1];
  const stream = nodes.find((node) => node.kind === "attention") ?? nodes[0];
  return {
    name, title, kind: "block", block: nodes[0].block, in: stream.in, out: last.out, section: null,
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
    blocks.push({ index, modulation, attention, mlp, whole: sum(parts, `blocks.${index}`, `Block ${index}`) });
  }
  return blocks.length ? blocks : null;
}

/** @param {Flow} flow @returns {Transformer | null} null for a network that is no diffusion transformer */
export function transformer(flow) {
  const find = (/** @type {string} */ kind) => flow.nodes.find((node) => node.kind === kind) ?? null;
  const [input, time, patch, final, output] = ["input", "time", "patch_embed", "final", "output"].map(find);
  const blocks = blocksOf(flow.nodes);
  if (!input || !time || !patch || !final || !output || !blocks) return null;
  return {
    input, time, patch, final, output, blocks,
    label: find("label"), positions: find("positions"), unpatchify: find("unpatchify"),
  };
}

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

/** Shape without the batch: "16×64".
 * @param {number[] | undefined} shape @returns {string} */
export const shapeText = (shape) => (shape && shape.length > 1 ? shape.slice(1).join("×") : shape?.join("×") ?? "");

/** What a node gives, without the batch. A modulation gives six vectors, and the batch comes second.
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

/** What a kind of node does, in one line, with its formula.
 * @type {Record<string, [string, string]>} */
const MEANING = {
  input: ["The noisy image xₜ: data at t = 0, noise at t = 1.", "xₜ = a(t)·x₀ + s(t)·ε"],
  time: ["The time as sines and cosines, then a small MLP: the vector c that steers every block.", "c = MLP(sin, cos of 1000·t)"],
  label: ["The label as a learned vector, added to c. A further row stands for no label.", "c ← c + row of the label"],
  patch_embed: ["Cuts the image into patches and maps each to one token, with one linear layer.", "token = W·patch + b"],
  positions: ["Adds where each patch sits: attention itself would not know.", "x ← x + position"],
  modulation: ["Makes shift, scale and gate for both branches out of c. It starts at zero, so every block starts as the identity.", "shift, scale, gate (× 2) = W·SiLU(c) + b"],
  attention: ["Every patch reads every patch, weighted by softmax(QKᵀ/√d), and the gate decides how much of it is added.", "x ← x + gate ⊙ Attention(norm(x)·(1 + scale) + shift)"],
  mlp: ["Works on each token by itself, and its gate decides how much of it is added.", "x ← x + gate ⊙ MLP(norm(x)·(1 + scale) + shift)"],
  final: ["One last modulation, and a linear layer from each token to the pixels of its patch. No gate: nothing is left to add to.", "W·(norm(x)·(1 + scale) + shift) + b"],
  unpatchify: ["Lays the pixels of each token out as its patch of the image.", "N tokens × p²·C → C × H × W"],
  output: ["What the network says of the input.", "f(xₜ, t)"],
  block: ["Attention and MLP, both added to the stream of tokens through gates.", "x ← x + gate ⊙ f(norm(x)·(1 + scale) + shift)"],
  other: ["A module of this network, in the order a batch passes.", ""],
};

/** The same for modules of other networks, by their class. @type {Record<string, [string, string]>} */
const CLASSES = {
  Conv2d: ["A convolution: each value out is a weighted sum of the values around it.", ""],
  ResidualBlock: ["Two convolutions on a residual branch; c scales and shifts what is between them.", "x ← shortcut(x) + conv(norm(conv(x))·(1 + scale) + shift)"],
  PixelAttention: ["Every pixel of this feature map reads every other, on a residual branch.", "x ← x + Attention(norm(x))"],
  GroupNorm: ["Brings groups of channels to mean 0 and variance 1.", "(x − mean) / deviation · w + b"],
  Conditioner: ["The time, and the label where there is one, as the vector c.", "c = MLP(sin, cos of 1000·t)"],
  SinEmb: ["The time as sines and cosines of many frequencies.", "sin, cos of 1000·t·frequency"],
  Linear: ["A linear layer; between two of them, SiLU.", "W·x + b"],
  AdaLN: ["Makes a shift and a scale for each branch of this block out of c.", "shift, scale (× 2) = W·SiLU(c) + b"],
  FiLM: ["Makes one shift and one scale for both branches of this block out of c.", "shift, scale = W·SiLU(c) + b"],
  InContext: ["The learned scale and shift of this block's norms; time and label are tokens beside the patches.", ""],
  CrossAttended: ["The learned scale and shift of this block's norms; time and label are tokens that the block reads.", ""],
  CrossAttention: ["Every patch reads the tokens of time and label.", "x ← x + Attention(norm(x), norm(tokens))"],
  Attention: ["Every token reads every token, weighted by softmax(QKᵀ/√d).", "x ← x + Attention(norm(x)·(1 + scale) + shift)"],
  MLP: ["Works on each token by itself.", "x ← x + MLP(norm(x)·(1 + scale) + shift)"],
  SwiGLU: ["Works on each token by itself, half of its hidden values gating the other half.", "x ← x + SwiGLU(norm(x)·(1 + scale) + shift)"],
  TimeEmbedding: ["The second time, t − r, as sines and cosines, then a small MLP: added to c.", "c ← c + MLP(sin, cos of 1000·(t − r))"],
};

const TARGETS = /** @type {Record<string, string>} */ ({
  velocity: "The predicted velocity dx/dt.", eps: "The predicted noise ε.", x0: "The predicted clean image x₀.",
  v: "The predicted v = a·ε − s·x₀.",
});

/** @param {Node} node @param {string} target @returns {[string, string]} */
export function meaning(node, target) {
  const [text, formula] = (node.kind === "other" && CLASSES[node.title.match(/\((\w+)\)/)?.[1] ?? ""]) || MEANING[node.kind] || MEANING.other;
  return node.kind === "output" ? [TARGETS[target] ?? text, formula] : [text, formula];
}
