/** Whole diagrams: a transformer as a wide U or a narrow column. */
import { blockRow, builder, rounded } from "./layout.js";
import { shapeText, steers } from "./model.js";

/**
 * @typedef {import("./model.js").Node} Node
 * @typedef {import("./model.js").Transformer} Transformer
 * @typedef {import("./layout.js").Box} Box
 * @typedef {import("./layout.js").Edge} Edge
 * @typedef {import("./layout.js").Step} Step
 * @typedef {import("./layout.js").Scene} Scene
 */

/** @param {Node} node @param {number} x @param {number} y @param {number} w @param {number} h @param {Partial<Box>} [more] @returns {Box} */
function nodeBox(node, x, y, w, h, more = {}) {
  return { id: node.name, shape: "box", x, y, w, h, text: node.title, kind: node.kind, node, does: "section", ...more };
}

/** @param {string} id @param {number[][]} points @param {Edge["kind"]} [kind] @param {Partial<Edge>} [more] @returns {Edge} */
function edge(id, points, kind = "stream", more = {}) {
  return { id, kind, d: rounded(points), arrow: true, ...more };
}

/** The shape beside the middle of an edge. @param {Node} node @param {number} x @param {number} y @returns {Partial<Edge>} */
const beside = (node, x, y) => ({ text: shapeText(node.out), at: [x + 9, y + 4], anchor: "start" });

/** What becomes of the conditions: tokens that join the patches, or what the blocks take from a rail. @param {Transformer} model */
function parted(model) {
  const name = (/** @type {Node} */ { kind, title }) => (kind === "text" ? "no text" : kind === "scalar" ? title.split(" ")[0] : kind);
  const joins = model.conditions.filter((node) => model.tokens.sequence.includes(name(node)));
  const rest = steers(model) ? model.conditions.filter((node) => !joins.includes(node)) : [];
  const summed = model.final.steered || model.blocks.some((block) => block.modulation.steered);
  return { joins, rest, summed };
}

/** What the rail carries: the sum c, or tokens that the blocks read. @param {Transformer} model */
function carried(model) {
  const read = model.blocks[0].cross?.in[1];
  return parted(model).summed ? `c, ${shapeText(model.conditions[0].out)}` : `tokens, ${shapeText(read)}`;
}

/** How many tokens join, and how wide they are. @param {Transformer} model */
const joined = (model) => `tokens, ${shapeText(model.join?.in[1])}`;

/** Image down through the patches on the left, blocks along the foot, and up to the prediction on the right: a U.
 * @param {Transformer} model @param {{open: number, all: boolean, width: number, room: number}} options `room` above the blocks, for the card
 * @returns {Scene} */
export function wideScene(model, { open, all, width, room }) {
  const full = Math.max(1000, width);
  const row = Math.max(262, room + 60);
  const [left, right] = [78, full - 78];
  const b = builder(true, row);
  b.boxes.push(
    nodeBox(model.input, left, 72, 104, 104, { shape: "image", above: true }),
    nodeBox(model.patch, left, 176, 144, 42),
    nodeBox(model.positions ?? model.patch, left, row, 28, 28, { shape: "circle", text: "+", below: true, id: "positions" }),
  );
  b.edges.push(
    edge("patch.in", [[left, 124], [left, 155]], "stream", beside(model.input, left, 138)),
    edge("positions.in", [[left, 197], [left, row - 14]], "stream", beside(model.patch, left, 223)),
  );
  b.steps.push({ edges: [], node: model.input.name }, { edges: [["patch.in", 0, 1]], node: model.patch.name });
  if (model.positions) b.steps.push({ edges: [["positions.in", 0, 1]], node: "positions" });
  const from = wideStart(b, model, left, row);
  const row0 = right - 62 - 58 - (model.cut ? WIDE_CUT : 0);
  // Blocks that need less than the room stay together; the last edge bridges what is left.
  const end = blockRow(b, model, open, all, from, row0 - from);
  const last = right + Math.max(0, end - row0);
  const height = wideCondition(b, model, left, last);
  wideEnd(b, model, end, last, row);
  return { width: last + 78, height, boxes: b.boxes, edges: b.edges, steps: b.steps };
}

const WIDE_CUT = 106;
const JOIN = 172;

/** From the positions to the blocks, past where the conditions join. @param {ReturnType<typeof builder>} b @param {Transformer} model @param {number} left @param {number} row
 * @returns {number} where the blocks start */
function wideStart(b, model, left, row) {
  const hop = (/** @type {string} */ id, /** @type {number} */ from, /** @type {number} */ to, /** @type {Node} */ node) =>
    b.edges.push(edge(id, [[from, row], [to, row]], "stream", { text: shapeText(node.out), at: [(from + to) / 2 - 2, row - 9], anchor: "middle" }));
  if (model.join) {
    hop("join.in", left + 14, JOIN - 26, model.patch);
    b.boxes.push(nodeBox(model.join, JOIN, row, 52, 34, { text: "join" }));
    b.steps.push({ edges: [["join.in", 0, 1], ["joins", 0, 1]], node: model.join.name });
  }
  const [start, end] = model.join ? [JOIN + 26, JOIN + 86] : [left + 14, 152];
  hop("blocks.in", start, end, model.join ?? model.patch);
  b.steps.push({ edges: [["blocks.in", 0, 1]], node: null });
  return end;
}

/** @param {ReturnType<typeof builder>} b @param {Transformer} model @param {number} end of the blocks @param {number} x @param {number} row */
function wideEnd(b, model, end, x, row) {
  const hop = (/** @type {string} */ id, /** @type {number} */ from, /** @type {number} */ to, /** @type {number[]} */ shape) =>
    b.edges.push(edge(id, [[from, row], [to, row]], "stream", { text: shapeText(shape), at: [(from + to) / 2, row - 9], anchor: "middle" }));
  let at = end;
  if (model.cut) {
    const cut = x - 62 - WIDE_CUT + 24;
    hop("cut.in", at, cut - 22, model.cut.in[0]);
    b.boxes.push(nodeBox(model.cut, cut, row, 44, 34, { text: "cut" }));
    b.steps.push({ edges: [["cut.in", 0, 1]], node: model.cut.name });
    at = cut + 22;
  }
  hop("final.in", at, x - 62, model.final.in[0]);
  b.boxes.push(nodeBox(model.final, x, row, 124, 44));
  b.steps.push({ edges: [["final.in", 0, 1]], node: model.final.name });
  b.boxes.push(nodeBox(model.output, x, 72, 104, 104, { shape: "image", above: true }));
  const below = model.unpatchify ? 197 : 124;
  b.edges.push(edge("unpatchify.in", [[x, row - 22], [x, below]], "stream", beside(model.final, x, (row + below) / 2 - 9)));
  b.steps.push({ edges: [["unpatchify.in", 0, 1]], node: (model.unpatchify ?? model.output).name });
  if (!model.unpatchify) return;
  b.boxes.push(nodeBox(model.unpatchify, x, 176, 144, 42));
  b.edges.push(edge("output.in", [[x, 155], [x, 124]], "stream", beside(model.unpatchify, x, 141)));
  b.steps.push({ edges: [["output.in", 0, 1]], node: model.output.name });
}

/** What the network is told, below the blocks. @param {ReturnType<typeof builder>} b @param {Transformer} model
 * @param {number} x @param {number} last where the final layer is @returns {number} the diagram's height */
function wideCondition(b, model, x, last) {
  const row = b.origin;
  const rail = row + b.size.rail;
  const { joins, rest, summed } = parted(model);
  const y = (/** @type {Node} */ node) => rail + 62 * model.conditions.indexOf(node);
  const [out, turn] = [x + 76, x + 98];
  b.boxes.push(...model.conditions.map((node, i) => nodeBox(node, x, y(node), 152, i ? 40 : 44)));
  if (rest.length) {
    const end = model.final.steered ? last : Math.max(...b.takers);
    const words = summed ? { text: carried(model), at: [end - 12, rail - 8], anchor: "end" } : { text: carried(model), at: [turn + 10, rail + 17], anchor: "start" };
    b.edges.push(edge("rail", model.final.steered ? [[out, rail], [end, rail], [end, row + 22]] : [[out, rail], [end, rail]], "condition", { ...words, arrow: Boolean(model.final.steered) }));
    if (summed && rest.length > 1) b.boxes.push({ ...circle("c.sum", turn, rail), text: "+" });
  }
  for (const node of rest.slice(1)) b.edges.push(edge(`${node.name}.out`, [[out, y(node)], [turn, y(node)], [turn, rail + (summed ? 11 : 0)]], "condition", { arrow: summed }));
  joins.forEach((node, i) => {
    const words = i ? {} : { text: joined(model), at: [JOIN - 8, (row + rail) / 2 + 24], anchor: "end" };
    b.edges.push(edge(i ? `${node.name}.out` : "joins", [[out, y(node)], [JOIN, y(node)], [JOIN, i ? y(joins[0]) : row + 17]], "condition", { ...words, arrow: i === 0 }));
  });
  b.steps.unshift({ edges: [[rest.length ? "rail" : "joins", 0, 0.35], ...model.conditions.slice(1).map((node) => /** @type {[string, number, number]} */ ([`${node.name}.out`, 0, 1]))], node: model.conditions[0].name });
  return y(model.conditions[model.conditions.length - 1]) + 40;
}

/** @param {string} id @param {number} x @param {number} y @returns {Box} */
const circle = (id, x, y) => ({ id, shape: "circle", x, y, w: 22, h: 22, text: "", kind: "sum", node: null, does: null });

/** Everything in one column, what the network is told at its right.
 * @param {Transformer} model @param {{open: number, all: boolean, width: number}} options @returns {Scene} */
export function narrowScene(model, { open, all, width }) {
  const origin = 66;
  const b = builder(false, origin);
  const rail = origin + b.size.rail;
  const room = Math.max(rail + 12, Math.min(width, 380));
  b.boxes.push(nodeBox(model.input, origin, 68, 92, 92, { shape: "image", above: true }), nodeBox(model.patch, origin, 166, 128, 40),
    nodeBox(model.positions ?? model.patch, origin, 232, 26, 26, { shape: "circle", text: "+", id: "positions" }));
  b.edges.push(edge("patch.in", [[origin, 114], [origin, 146]], "stream", beside(model.input, origin, 129)),
    edge("positions.in", [[origin, 186], [origin, 219]], "stream", beside(model.patch, origin, 202)));
  b.steps.push({ edges: [], node: model.input.name }, { edges: [["patch.in", 0, 1]], node: model.patch.name },
    { edges: [["positions.in", 0, 1]], node: model.positions ? "positions" : null });
  const start = narrowStart(b, model, 64 * Math.max(0, model.conditions.length - 3));
  const end = blockRow(b, model, open, all, start, 0);
  const final = narrowFinal(b, model, end);
  narrowCondition(b, model, rail, final, origin + 60);
  const height = narrowEnd(b, model, origin, final + 20);
  return { width: room, height, boxes: b.boxes, edges: b.edges, steps: b.steps };
}

/** From the positions to the blocks, past where the conditions join. @param {ReturnType<typeof builder>} b @param {Transformer} model
 * @param {number} lower room for more conditions @returns {number} where the blocks start */
function narrowStart(b, model, lower) {
  const x = b.origin;
  let at = 245;
  /** @type {Partial<Edge>} */
  const positions = { text: "positions", at: [x + 19, 237], anchor: "start" };
  if (model.join) {
    const y = 310 + lower;
    b.edges.push(edge("join.in", [[x, at], [x, y - 16]], "stream", positions));
    b.boxes.push(nodeBox(model.join, x, y, 64, 32, { text: "join" }));
    b.steps.push({ edges: [["join.in", 0, 1], ["joins", 0, 1]], node: model.join.name });
    at = y + 16;
  }
  const end = model.join ? at + 34 : 282 + lower;
  b.edges.push(edge("blocks.in", [[x, at], [x, end]], "stream", model.join ? beside(model.join, x, (at + end) / 2) : positions));
  b.steps.push({ edges: [["blocks.in", 0, 1]], node: null });
  return end;
}

/** From the blocks to the final layer, past where the conditions leave. @param {ReturnType<typeof builder>} b @param {Transformer} model
 * @param {number} at end of the blocks @returns {number} where the middle of the final layer is */
function narrowFinal(b, model, at) {
  const x = b.origin;
  const hop = (/** @type {string} */ id, /** @type {number[]} */ shape) => {
    b.edges.push(edge(id, [[x, at], [x, at + 34]], "stream", { text: shapeText(shape), at: [x + 9, at + 20], anchor: "start" }));
    at += 34;
  };
  if (model.cut) {
    hop("cut.in", model.cut.in[0]);
    b.boxes.push(nodeBox(model.cut, x, at + 16, 64, 32, { text: "cut" }));
    b.steps.push({ edges: [["cut.in", 0, 1]], node: model.cut.name });
    at += 32;
  }
  hop("final.in", model.final.in[0]);
  b.boxes.push(nodeBox(model.final, x, at + 20, 120, 40));
  b.steps.push({ edges: [["final.in", 0, 1]], node: model.final.name });
  return at + 20;
}

/** @param {ReturnType<typeof builder>} b @param {Transformer} model @param {number} rail @param {number} final @param {number} x */
function narrowCondition(b, model, rail, final, x) {
  const { joins, rest, summed } = parted(model);
  const y = (/** @type {Node} */ node) => 60 + 64 * model.conditions.indexOf(node);
  const [x0, out] = [rail - 85, rail - 20];
  b.boxes.push(...model.conditions.map((node) => nodeBox(node, x0, y(node), 130, 40)));
  rest.forEach((node, i) => {
    if (summed && i) b.boxes.push({ ...circle(`c.sum.${i}`, rail, y(node)), text: "+" });
    const end = model.final.steered ? [[rail, final], [x, final]] : [[rail, Math.max(...b.takers)]];
    b.edges.push(edge(i ? `${node.name}.out` : "rail", [[out, y(node)], [rail - (summed && i ? 11 : 0), y(node)], ...(i ? [] : end)], "condition", { arrow: !i && Boolean(model.final.steered) }));
  });
  joins.forEach((node, i) => {
    const down = b.boxes.find((box) => box.node === model.join)?.y ?? 0;
    b.edges.push(edge(i ? `${node.name}.out` : "joins", [[out, y(node)], [rail, y(node)], ...(i ? [] : [[rail, down], [b.origin + 32, down]])], "condition",
      i ? { arrow: false } : { text: joined(model), at: [rail - 8, down - 8], anchor: "end" }));
  });
  b.steps.unshift({ edges: [[rest.length ? "rail" : "joins", 0, 0.35], ...model.conditions.slice(1).map((node) => /** @type {[string, number, number]} */ ([`${node.name}.out`, 0, 1]))], node: model.conditions[0].name });
}

/** @param {{boxes: Box[], edges: Edge[], steps: Step[]}} b @param {Transformer} model @param {number} x @param {number} y
 * @returns {number} the diagram's height */
function narrowEnd(b, model, x, y) {
  if (model.unpatchify) {
    b.boxes.push(nodeBox(model.unpatchify, x, y + 52, 128, 40));
    b.edges.push(edge("unpatchify.in", [[x, y], [x, y + 32]], "stream", beside(model.final, x, y + 15)));
    b.steps.push({ edges: [["unpatchify.in", 0, 1]], node: model.unpatchify.name });
    y += 72;
  }
  b.boxes.push(nodeBox(model.output, x, y + 80, 92, 92, { shape: "image" }));
  b.edges.push(edge("output.in", [[x, y], [x, y + 34]], "stream", beside(model.unpatchify ?? model.final, x, y + 16)));
  b.steps.push({ edges: [["output.in", 0, 1]], node: model.output.name });
  return y + 150;
}
