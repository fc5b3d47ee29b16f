/** What the flow diagram says of each part, with its formula: what is true of this network's kind of conditioning. */
import { steers } from "./model.js";

/**
 * @typedef {import("./model.js").Node} Node
 * @typedef {import("./model.js").Transformer} Transformer
 */

/** What a kind of node does, in one line, with its formula, in every network.
 * @type {Record<string, [string, string]>} */
const MEANING = {
  input: ["The noisy image xₜ: data at t = 0, noise at t = 1.", "xₜ = a(t)·x₀ + s(t)·ε"],
  patch_embed: ["Cuts the image into patches and maps each to one token, with one linear layer.", "token = W·patch + b"],
  positions: ["Adds the position of each patch, which attention alone would not know.", "x ← x + position"],
  join: ["Appends a token for each condition to those of the patches. From here on the blocks treat all tokens alike.", "[patches; conditions]"],
  cut: ["Drops the tokens of the conditions: their information is in the patches now.", "the first N tokens"],
  unpatchify: ["Lays the pixels of each token out as its patch of the image.", "N tokens × p²·C → C × H × W"],
  output: ["What the network predicts from the input.", "f(xₜ, t)"],
  other: ["A module of this network, in the order a batch passes through.", ""],
};

/** The same for modules of other networks, by their class. @type {Record<string, [string, string]>} */
const CLASSES = {
  Conv2d: ["A convolution: each value out is a weighted sum of the values around it.", ""],
  ResidualBlock: ["Two convolutions on a residual branch; c scales and shifts the values between them.", "x ← shortcut(x) + conv(norm(conv(x))·(1 + scale) + shift)"],
  PixelAttention: ["Every pixel of this feature map reads every other, on a residual branch.", "x ← x + Attention(norm(x))"],
  GroupNorm: ["Brings groups of channels to mean 0 and variance 1.", "(x − mean) / deviation · w + b"],
  Conditioner: ["The time, and the label where there is one, as the vector c.", "c = MLP(sin, cos of time_scale·t)"],
  SinEmb: ["The time as sines and cosines of many frequencies.", "sin, cos of time_scale·t·frequency"],
  Linear: ["A linear layer; between two of them, SiLU.", "W·x + b"],
};

const TARGETS = /** @type {Record<string, string>} */ ({
  velocity: "The predicted velocity dx/dt.", eps: "The predicted noise ε.", x0: "The predicted clean image x₀.",
  v: "The predicted v = a·ε − s·x₀.",
});

/** What the conditions are, each as a vector of a token's width. @type {Record<string, [string, string]>} */
const TOLD = {
  time: ["The time as sines and cosines, then a small MLP", "MLP(sin, cos of time_scale·t)"],
  label: ["The label as a learned vector", "row of the label"],
  interval: ["The second time, t − r, as sines and cosines, then a small MLP", "MLP(sin, cos of time_scale·(t − r))"],
  scalar: ["A number as sines and cosines, then a small MLP", "MLP(sin, cos of 1000·s)"],
  text: ["The text's features through one linear layer, after a learned token for no text", "W·text + b"],
};

/** Where a condition goes. @param {Node} node @param {Transformer} model @returns {[string, string]} */
function told(node, model) {
  const [text, formula] = TOLD[node.kind];
  const { sequence, cross } = model.tokens;
  const name = node.kind === "scalar" || node.kind === "text" ? node.title.split(" ")[0] : node.kind;
  const among = (/** @type {string[]} */ names) => names.includes(name) || (node.kind === "text" && names.includes("no text"));
  if (among(sequence)) return [`${text}: a token of its own, which joins the patches.`, `token = ${formula}`];
  if (among(cross)) return [`${text}: a token that the patches of every block read.`, `token = ${formula}`];
  if (node.kind === "time") return [`${text}: the vector c that steers every block.`, `c = ${formula}`];
  return [`${text}, added to c.`, `c ← c + ${formula}`];
}

/** How a kind makes its modulations, by its class. @type {Record<string, [string, string]>} */
const MODULATIONS = {
  AdaLNZero: ["Makes shift, scale and gate for both branches from c. It starts at zero, so every block starts as the identity.", "shift, scale, gate (× 2) = W·SiLU(c) + b"],
  AdaLN: ["Makes a shift and a scale for each branch from c. There is no gate.", "shift, scale (× 2) = W·SiLU(c) + b"],
  FiLM: ["Makes one shift and one scale for both branches from c. There is no gate.", "shift, scale = W·SiLU(c) + b"],
};

/** @param {Node} node @returns {[string, string]} */
function modulation(node) {
  if (!node.steered) return ["The scale and the shift of this block's norms: learned, and the same for all conditions.", ""];
  return MODULATIONS[node.class ?? ""] ?? [`Makes ${node.gated ? "shift, scale and gate" : "shift and scale"} for both branches from the conditions.`, ""];
}

/** A branch of a block. @param {Node} node @param {Transformer} model @returns {[string, string]} */
function branch(node, model) {
  const { sequence } = model.tokens;
  const gate = node.gated ? "gate ⊙ " : "";
  if (node.kind === "cross") return ["Every patch reads the tokens of the conditions: queries of the patches, keys and values of the conditions.", "x ← x + Attention(norm(x), norm(conditions))"];
  if (node.kind === "mlp") {
    const name = node.class === "SwiGLU" ? "SwiGLU" : "MLP";
    return [`Works on each token by itself${node.gated ? ", and its gate decides how much of it is added" : ""}.`, `x ← x + ${gate}${name}(norm(x)·(1 + scale) + shift)`];
  }
  const who = sequence.length ? "Every token, patch or condition, reads every token" : "Every patch reads every patch";
  return [`${who}, weighted by softmax(QKᵀ/√d)${node.gated ? ", and the gate decides how much of it is added" : ""}.`, `x ← x + ${gate}Attention(norm(x)·(1 + scale) + shift)`];
}

/** @param {Node} node @param {Transformer} model @returns {[string, string]} */
function block(node, model) {
  const cross = model.blocks.some((one) => one.cross);
  const parts = cross ? "Attention, cross-attention to the conditions and MLP, all" : "Attention and MLP, both";
  return [`${parts} added to the stream of tokens${node.gated ? " through gates" : ""}.`, `x ← x + ${node.gated ? "gate ⊙ " : ""}f(norm(x)·(1 + scale) + shift)`];
}

/** @param {Node} node @param {Transformer} model @returns {[string, string]} */
function final(node, model) {
  const first = node.steered ? "One last modulation" : `A norm with a learned scale and shift${steers(model) || model.tokens.sequence.length ? ", which no condition reaches" : ""}`;
  const gate = model.blocks.some((one) => one.whole.gated) ? " No gate: nothing is left to add to." : "";
  return [`${first}, and a linear layer from each token to the pixels of its patch.${gate}`, "W·(norm(x)·(1 + scale) + shift) + b"];
}

/** @type {Record<string, (node: Node, model: Transformer) => [string, string]>} */
const PARTS = { time: told, label: told, interval: told, scalar: told, text: told, modulation, attention: branch, cross: branch, mlp: branch, block, final };

/** @param {Node} node @param {string} target @param {Transformer | null} model null for a network that is no diffusion transformer
 * @returns {[string, string]} */
export function meaning(node, target, model) {
  if (model && PARTS[node.kind]) return PARTS[node.kind](node, model);
  const [text, formula] = (node.kind === "other" && CLASSES[node.class ?? ""]) || MEANING[node.kind] || MEANING.other;
  if (node.kind !== "output") return [text, formula];
  // The first half of twice as many channels is what the target says.
  const half = model && node.out[1] === 2 * model.input.out[1] ? " The second half of the channels predicts the variance of a DDPM step." : "";
  return [(TARGETS[target] ?? text) + half, formula];
}
