/** Whole diagrams: a transformer as a wide U or a narrow column. */
import { blockRow, builder, rounded } from "./flow_layout.js";
import { shapeText } from "./flow_model.js";

/**
 * @typedef {import("./flow_model.js").Node} Node
 * @typedef {import("./flow_model.js").Transformer} Transformer
 * @typedef {import("./flow_layout.js").Box} Box
 * @typedef {import("./flow_layout.js").Edge} Edge
 * @typedef {import("./flow_layout.js").Step} Step
 * @typedef {import("./flow_layout.js").Scene} Scene
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

/** Image down through the patches on the left, blocks along the foot, and up to the prediction on the right: a U.
 * @param {Transformer} model @param {{open: number, all: boolean, width: number, room: number}} options `room` above the blocks, for the card
 * @returns {Scene} */
export function wideScene(model, { open, all, width, room }) {
  const full = Math.max(1000, width);
  const row = Math.max(262, room + 60);
  const [left, right] = [78, full - 78];
  const b = builder(true, row);
  const rail = row + b.size.rail;
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
  const from = 152;
  const row0 = right - 62 - 58;
  b.line("blocks.in", "stream", [[left + 14, 0], [from, 0]], { text: shapeText(model.patch.out), at: [left + 43, row - 9], anchor: "middle" });
  b.steps.push({ edges: [["blocks.in", 0, 1]], node: null });
  // Blocks that need less than the room stay together; the last edge bridges what is left.
  const end = blockRow(b, model, open, all, from, row0 - from);
  const grown = Math.max(0, end - row0);
  const last = right + grown;
  b.line("final.in", "stream", [[end, 0], [last - 62, 0]], { text: shapeText(model.final.in[0]), at: [(end + last - 62) / 2, row - 9], anchor: "middle" });
  b.boxes.push(nodeBox(model.final, last, row, 124, 44));
  b.edges.push(edge("final.c", [[left + 72, rail], [last, rail], [last, row + 22]], "condition",
    { text: `c, ${shapeText(model.time.out)}`, at: [last - 12, rail - 8], anchor: "end" }));
  b.steps.push({ edges: [["final.in", 0, 1]], node: model.final.name });
  wideEnd(b, model, last, row);
  const height = wideCondition(b, model, left, rail);
  return { width: last + 78, height, boxes: b.boxes, edges: b.edges, steps: b.steps };
}

/** @param {{boxes: Box[], edges: Edge[], steps: Step[]}} b @param {Transformer} model @param {number} x @param {number} row */
function wideEnd(b, model, x, row) {
  b.boxes.push(nodeBox(model.output, x, 72, 104, 104, { shape: "image", above: true }));
  const below = model.unpatchify ? 197 : 124;
  b.edges.push(edge("unpatchify.in", [[x, row - 22], [x, below]], "stream", beside(model.final, x, (row + below) / 2 - 9)));
  b.steps.push({ edges: [["unpatchify.in", 0, 1]], node: (model.unpatchify ?? model.output).name });
  if (!model.unpatchify) return;
  b.boxes.push(nodeBox(model.unpatchify, x, 176, 144, 42));
  b.edges.push(edge("output.in", [[x, 155], [x, 124]], "stream", beside(model.unpatchify, x, 141)));
  b.steps.push({ edges: [["output.in", 0, 1]], node: model.output.name });
}

/** The branch of time and label, below the blocks. @param {{boxes: Box[], edges: Edge[], steps: Step[]}} b @param {Transformer} model
 * @param {number} x @param {number} rail @returns {number} the diagram's height */
function wideCondition(b, model, x, rail) {
  b.boxes.push(nodeBox(model.time, x, rail, 144, 44));
  b.steps.unshift({ edges: [["final.c", 0, 0.35]], node: model.time.name });
  if (!model.label) return rail + 40;
  b.boxes.push(nodeBox(model.label, x, rail + 62, 144, 40), { ...circle("c.sum", x + 98, rail), text: "+" });
  b.edges.push(edge("label.out", [[x + 72, rail + 62], [x + 98, rail + 62], [x + 98, rail + 11]], "condition"));
  b.steps[0].edges.push(["label.out", 0, 1]);
  return rail + 96;
}

/** @param {string} id @param {number} x @param {number} y @returns {Box} */
const circle = (id, x, y) => ({ id, shape: "circle", x, y, w: 22, h: 22, text: "", kind: "sum", node: null, does: null });

/** Everything in one column, the branch of time and label at its right.
 * @param {Transformer} model @param {{open: number, all: boolean, width: number}} options @returns {Scene} */
export function narrowScene(model, { open, all, width }) {
  const origin = 66;
  const b = builder(false, origin);
  const rail = origin + b.size.rail;
  const room = Math.max(rail + 16, Math.min(width, 380));
  b.boxes.push(nodeBox(model.input, origin, 68, 92, 92, { shape: "image", above: true }), nodeBox(model.patch, origin, 166, 128, 40),
    nodeBox(model.positions ?? model.patch, origin, 232, 26, 26, { shape: "circle", text: "+", below: true, id: "positions" }));
  b.edges.push(edge("patch.in", [[origin, 114], [origin, 146]], "stream", beside(model.input, origin, 129)),
    edge("positions.in", [[origin, 186], [origin, 219]], "stream", beside(model.patch, origin, 202)));
  b.line("blocks.in", "stream", [[245, 0], [282, 0]]);
  b.steps.push({ edges: [], node: model.input.name }, { edges: [["patch.in", 0, 1]], node: model.patch.name },
    { edges: [["positions.in", 0, 1]], node: model.positions ? "positions" : null }, { edges: [["blocks.in", 0, 1]], node: null });
  const end = blockRow(b, model, open, all, 282, 0);
  b.line("final.in", "stream", [[end, 0], [end + 34, 0]], beside(model.final, origin, end + 16));
  const edges = b.edges[b.edges.length - 1];
  edges.text = shapeText(model.final.in[0]);
  b.boxes.push(nodeBox(model.final, origin, end + 54, 120, 40));
  b.steps.push({ edges: [["final.in", 0, 1]], node: model.final.name });
  narrowCondition(b, model, rail, end + 54, origin + 60);
  const height = narrowEnd(b, model, origin, end + 74);
  return { width: room, height, boxes: b.boxes, edges: b.edges, steps: b.steps };
}

/** @param {{boxes: Box[], edges: Edge[], steps: Step[]}} b @param {Transformer} model @param {number} rail @param {number} final
 * @param {number} x */
function narrowCondition(b, model, rail, final, x) {
  b.boxes.push(nodeBox(model.time, rail - 62, 60, 140, 40));
  if (model.label) {
    b.boxes.push(nodeBox(model.label, rail - 62, 140, 140, 40), { ...circle("c.sum", rail, 200), text: "+" });
    b.edges.push(edge("label.out", [[rail - 62, 160], [rail - 62, 200], [rail - 11, 200]], "condition"));
  }
  // Past the label's box, the rail runs at the very right.
  const side = rail + (model.label ? 14 : 0);
  const start = model.label ? [[rail + 8, 60], [side + 2, 60], [side + 2, 176], [rail, 176], [rail, final]] : [[rail, 80], [rail, final]];
  b.edges.push(edge("final.c", [...start, [x, final]], "condition"));
  b.steps.unshift({ edges: [["final.c", 0, 0.35], ...(model.label ? [/** @type {[string, number, number]} */ (["label.out", 0, 1])] : [])], node: model.time.name });
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
