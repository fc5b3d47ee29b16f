/** Where everything of the flow diagram goes: boxes and edges as plain numbers, for a wide and for a narrow page. */
import { arrange, shapeText, takesConditions } from "./model.js";

/**
 * @typedef {import("./model.js").Node} Node
 * @typedef {import("./model.js").Block} Block
 * @typedef {import("./model.js").Transformer} Transformer
 * @typedef {{id: string, shape: "box" | "circle" | "frame" | "image" | "stack" | "slab", x: number, y: number, w: number,
 *   h: number, text: string, kind: string, node: Node | null, does: "section" | "open" | "all" | null, block?: number,
 *   turned?: boolean, below?: boolean, above?: boolean, chips?: string[]}} Box  x and y are the middle
 * @typedef {{id: string, d: string, kind: "stream" | "branch" | "condition", arrow: boolean, text?: string, at?: number[],
 *   anchor?: string}} Edge
 * @typedef {{edges: [string, number, number][], node: string | null}} Step  edge, from and to as shares of its length
 * @typedef {{width: number, height: number, boxes: Box[], edges: Edge[], steps: Step[]}} Scene
 * @typedef {{ln: number, fn: number, gap: number, gate: number, pause: number, pad: number, slab: number, between: number,
 *   branch: number, mod: number, rail: number, near: number, fnAcross: number, lnAcross: number, modAcross: number}} Sizes
 */

/** Along the stream and across it, in px. @type {Record<"wide" | "narrow", Sizes>} */
const SIZES = {
  wide: { ln: 44, fn: 92, gap: 15, gate: 12, pause: 22, pad: 12, slab: 78, between: 30, branch: 74, mod: 148, rail: 226,
    near: 44, fnAcross: 50, lnAcross: 34, modAcross: 34 },
  narrow: { ln: 28, fn: 42, gap: 12, gate: 11, pause: 18, pad: 26, slab: 40, between: 22, branch: 92, mod: 186, rail: 240,
    near: 38, fnAcross: 104, lnAcross: 44, modAcross: 32 },
};

/** Builds a scene in coordinates along and across the stream, turned upright on narrow pages. */
class Builder {
  /** @param {boolean} wide @param {number} origin where the stream runs */
  constructor(wide, origin) {
    this.wide = wide;
    this.origin = origin;
    this.size = SIZES[wide ? "wide" : "narrow"];
    /** @type {Box[]} */
    this.boxes = [];
    /** @type {Edge[]} */
    this.edges = [];
    /** @type {Step[]} */
    this.steps = [];
    /** Where lines leave the rail of the conditions, along the stream. @type {number[]} */
    this.takers = [];
  }

  /** From the rail of the conditions straight to something. @param {string} id @param {number} along @param {number} across */
  take(id, along, across) {
    this.takers.push(along);
    this.line(id, "condition", [[along, this.size.rail], [along, across]]);
  }

  /** @param {number} along @param {number} across @returns {number[]} x, y */
  point(along, across) {
    return this.wide ? [along, this.origin + across] : [this.origin + across, along];
  }

  /** @param {string} id @param {number} along @param {number} across @param {number} length @param {number} breadth
   * @param {Partial<Box>} more @returns {Box} */
  box(id, along, across, length, breadth, more) {
    const [x, y] = this.point(along, across);
    const [w, h] = this.wide ? [length, breadth] : [breadth, length];
    const box = { id, shape: "box", x, y, w, h, text: "", kind: "other", node: null, does: null, ...more };
    this.boxes.push(/** @type {Box} */ (box));
    return /** @type {Box} */ (box);
  }

  /** A line through points (along, across), with rounded corners.
   * @param {string} id @param {Edge["kind"]} kind @param {number[][]} points @param {Partial<Edge>} [more] */
  line(id, kind, points, more = {}) {
    const d = rounded(points.map(([along, across]) => this.point(along, across)));
    this.edges.push({ id, kind, d, arrow: true, ...more });
  }
}

/** @param {number[][]} points @param {number} [radius] @returns {string} */
export function rounded(points, radius = 9) {
  let d = `M${points[0].join(" ")}`;
  for (let i = 1; i < points.length; i++) {
    const [here, next] = [points[i], points[i + 1]];
    if (!next) return `${d}L${here.join(" ")}`;
    const before = points[i - 1];
    const r = Math.min(radius, distance(before, here) / 2, distance(here, next) / 2);
    d += `L${toward(here, before, r).join(" ")}Q${here.join(" ")} ${toward(here, next, r).join(" ")}`;
  }
  return d;
}

/** @param {number[]} a @param {number[]} b */
const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

/** @param {number[]} from @param {number[]} to @param {number} length */
function toward(from, to, length) {
  const share = length / (distance(from, to) || 1);
  return [from[0] + (to[0] - from[0]) * share, from[1] + (to[1] - from[1]) * share];
}

/** How long the box of a branch is: cross-attention has a long name. @param {Builder} b @param {Node} node */
const lengthOf = (b, node) => b.size.fn + (b.wide && node.kind === "cross" ? 32 : 0);

/** One branch: tapped off the stream, normed, through its module and, where there is one, its gate, and added back.
 * @param {Builder} b @param {string} id @param {Node} node @param {number} start @returns {{tap: number, sum: number, end: number}} */
function branch(b, id, node, start) {
  const { ln, gap, gate, branch: across, lnAcross } = b.size;
  const fn = lengthOf(b, node);
  const fnAcross = b.size.fnAcross + (!b.wide && node.kind === "cross" ? 16 : 0);
  const gated = node.gated && node.kind !== "cross";
  const tap = start + ln / 2;
  const fnAt = start + ln + gap + fn / 2;
  const sum = start + ln + gap + fn + gap + gate;
  b.box(`${id}.norm`, tap, across, ln, lnAcross, { text: "norm", kind: "norm" });
  b.box(node.name, fnAt, across, fn, fnAcross, { text: node.title, kind: node.kind, node, does: "section" });
  if (gated) b.box(`${id}.gate`, sum, across, 2 * gate, 2 * gate, { shape: "circle", text: "×", kind: "gate" });
  b.box(`${id}.sum`, sum, 0, 2 * gate, 2 * gate, { shape: "circle", text: "+", kind: "sum" });
  b.line(`${id}.in`, "branch", [[tap, 0], [tap, across - lnAcross / 2]]);
  b.line(`${id}.on`, "branch", [[start + ln, across], [start + ln + gap, across]], { arrow: false });
  if (gated) b.line(`${id}.through`, "branch", [[fnAt + fn / 2, across], [sum - gate, across]], { arrow: false });
  b.line(`${id}.out`, "branch", gated ? [[sum, across - gate], [sum, gate]] : [[fnAt + fn / 2, across], [sum, across], [sum, gate]]);
  if (node.kind === "cross") b.take(`${id}.read`, fnAt, across + fnAcross / 2);
  return { tap, sum, end: sum + gate };
}

/** From the box of a block's modulation to a branch: scale and shift of its norm, and its gate.
 * @param {Builder} b @param {string} id @param {Node} modulation @param {{tap: number, sum: number}} place @param {number} end of that box */
function modulate(b, id, modulation, { tap, sum }, end) {
  const { branch: across, mod, gate, lnAcross, modAcross } = b.size;
  const edge = mod - modAcross / 2;
  // What is learned once and for all is drawn as the branches are.
  const kind = modulation.steered ? "condition" : "branch";
  const over = tap > end;
  label(b, `${id}.steer`, kind, [...(over ? [[end, mod], [tap, mod]] : [[tap, edge]]), [tap, across + lnAcross / 2]], "scale, shift");
  if (modulation.gated) label(b, `${id}.open`, kind, [[sum, edge], [sum, across + gate]], "gate");
}

/** An edge with a word beside its middle.
 * @param {Builder} b @param {string} id @param {Edge["kind"]} kind @param {number[][]} points @param {string} text */
function label(b, id, kind, points, text) {
  const [from, to] = points.slice(-2);
  const middle = b.point((from[0] + to[0]) / 2, (from[1] + to[1]) / 2);
  // On a narrow page these lines are horizontal and short: the word would not fit.
  const more = b.wide ? { text, at: [middle[0] + (text === "gate" ? -6 : 6), middle[1] + 4], anchor: text === "gate" ? "end" : "start" } : {};
  b.line(id, kind, points, more);
}

/** The open block. @param {Builder} b @param {Block} block @param {number} start @returns {number} where it ends */
function openBlock(b, block, start) {
  const { pad, pause, mod, modAcross, near, gate } = b.size;
  const { modulation, cross } = block;
  const id = `b${block.index}`;
  const frame = b.box(`${id}.frame`, 0, 0, 0, 0, { shape: "frame", kind: "block", text: block.whole.title, node: block.whole });
  const first = branch(b, `${id}.a`, block.attention, start + pad);
  const between = cross ? branch(b, `${id}.x`, cross, first.end + pause) : null;
  const second = branch(b, `${id}.m`, block.mlp, (between ?? first).end + pause);
  const end = second.end + pad;
  // Beside a cross-attention the box is short: the line of the conditions goes past it.
  const [from, to] = [start + pad, (cross ? first : second).end];
  const middle = (from + to) / 2;
  b.box(modulation.name, middle, mod, to - from, modAcross,
    { text: modulation.title, kind: modulation.steered ? "modulation" : "norm", node: modulation, does: "section", turned: !b.wide });
  modulate(b, `${id}.a`, modulation, first, to);
  modulate(b, `${id}.m`, modulation, second, to);
  const far = mod + modAcross / 2;
  [frame.x, frame.y] = b.point((start + end) / 2, (far + pad - near) / 2);
  [frame.w, frame.h] = b.wide ? [end - start, far + pad + near] : [far + pad + near, end - start];
  if (modulation.steered) b.take(`${id}.c`, middle, far);
  const sums = [first, ...(between ? [between] : []), second].map(({ sum }) => sum);
  sums.forEach((sum, i) => b.line(`${id}.s${i}`, "stream", [[i ? sums[i - 1] + gate : start, 0], [sum - gate, 0]]));
  b.line(`${id}.s${sums.length}`, "stream", [[second.sum + gate, 0], [end, 0]], { arrow: false });
  b.steps.push(...blockSteps(b, block, id, (first.tap - start) / (first.sum - gate - start)));
  return end;
}

/** @param {Builder} b @param {Block} block @param {string} id @param {number} tap share of the stream's first piece before the tap
 * @returns {Step[]} of edges that are there */
function blockSteps(b, { modulation, attention, cross, mlp }, id, tap) {
  const last = cross ? 2 : 1;
  /** @type {Step[]} */
  const steps = [
    { edges: [[`${id}.c`, 0, 1], [`${id}.s0`, 0, tap]], node: modulation.name },
    { edges: [[`${id}.a.in`, 0, 1], [`${id}.a.steer`, 0, 1], [`${id}.s0`, tap, (1 + tap) / 2]], node: attention.name },
    { edges: [[`${id}.a.out`, 0, 1], [`${id}.a.open`, 0, 1], [`${id}.s0`, (1 + tap) / 2, 1]], node: null },
    ...(cross ? [
      { edges: /** @type {Step["edges"]} */ ([[`${id}.x.in`, 0, 1], [`${id}.x.read`, 0, 1], [`${id}.s1`, 0, 0.5]]), node: cross.name },
      { edges: /** @type {Step["edges"]} */ ([[`${id}.x.out`, 0, 1], [`${id}.s1`, 0.5, 1]]), node: null },
    ] : []),
    { edges: [[`${id}.m.in`, 0, 1], [`${id}.m.steer`, 0, 1], [`${id}.s${last}`, 0, 0.5]], node: mlp.name },
    { edges: [[`${id}.m.out`, 0, 1], [`${id}.m.open`, 0, 1], [`${id}.s${last}`, 0.5, 1]], node: null },
  ];
  const there = new Set(b.edges.map((edge) => edge.id));
  return steps.map((step) => ({ ...step, edges: step.edges.filter(([edge]) => there.has(edge)) }));
}

/** The marks of a closed block, one for each part. @param {Block} block */
const chips = ({ modulation, cross }) => ["attention", ...(cross ? ["cross"] : []), "mlp", ...(modulation.steered ? ["modulation"] : [])];

/** Closed blocks, or a stack of them. @param {Builder} b @param {Block[]} blocks @param {number} start @param {number} length
 * @returns {number} where it ends */
function closedBlock(b, blocks, start, length) {
  const { near, mod, modAcross, pad } = b.size;
  const first = blocks[0];
  const id = `b${first.index}`;
  const far = mod + modAcross / 2 + pad;
  const many = blocks.length > 1;
  const node = many ? together(blocks) : first.whole;
  const range = `${first.index}–${first.index + blocks.length - 1}`;
  const alike = b.wide ? `Blocks\n${range}\n${blocks.length} alike\nshow all` : `Blocks ${range}, ${blocks.length} alike`;
  const text = many ? alike : b.wide && length < 60 ? slabText(first.index, length) : first.whole.title;
  b.box(node.name, start + length / 2, (far - near) / 2, length, far + near,
    { shape: many ? "stack" : "slab", kind: "block", text, node, does: many ? "all" : "open",
      block: first.index, chips: chips(first) });
  const told = takesConditions(first);
  if (told) b.take(`${id}.c`, start + length / 2, far + (many ? 8 : 0));
  b.steps.push({ edges: told ? [[`${id}.c`, 0, 1]] : [], node: node.name });
  return start + length + (many ? 8 : 0);
}

/** Thin slabs have room for every fifth number. @param {number} index @param {number} length */
const slabText = (index, length) => (length > 18 || index % 5 === 0 ? `${index}` : "");

/** @param {Block[]} blocks @returns {Node} */
function together(blocks) {
  const nodes = blocks.map((block) => block.whole);
  const total = (/** @type {"parameters" | "macs" | "ms"} */ key) => nodes.reduce((all, node) => all + node[key], 0);
  const [first, last] = [blocks[0].index, blocks[blocks.length - 1].index];
  return {
    ...nodes[0], name: `blocks.${first}-${last}`, title: `Blocks ${first}–${last}, all alike`, out: nodes[nodes.length - 1].out,
    parameters: total("parameters"), macs: total("macs"), ms: total("ms"),
  };
}

/** All blocks in a row from `start`. @param {Builder} b @param {Transformer} model @param {number} open @param {boolean} all
 * @param {number} start @param {number} room px for the whole row, or 0 @returns {number} where it ends */
export function blockRow(b, model, open, all, start, room) {
  const { ln, gap, gate, pad, pause, between } = b.size;
  const groups = arrange(model.blocks, open, all);
  const { attention, cross, mlp } = model.blocks[open];
  const parts = [attention, ...(cross ? [cross] : []), mlp];
  const detail = parts.reduce((sum, node) => sum + ln + gap + lengthOf(b, node) + gap + 2 * gate + pause, 2 * pad - pause);
  const closed = groups.length - 1;
  const left = (room - detail) / Math.max(1, closed);
  const step = closed && room ? Math.max(14, Math.min(150, left)) : b.size.slab + between;
  const space = room ? Math.min(46, step * 0.3) : between;
  const text = shapeText((model.join ?? model.patch).out);
  let at = start;
  groups.forEach((group, i) => {
    if (i > 0) {
      const id = `b${group.blocks[0].index}.enter`;
      const middle = b.point(at + space / 2, b.wide ? -9 : 9);
      const more = b.wide && space >= 60 ? { text, at: middle, anchor: "middle" } : {};
      b.line(id, "stream", [[at, 0], [at + space, 0]], { arrow: space > 12, ...more });
      b.steps.push({ edges: [[id, 0, 1]], node: null });
      at += space;
    }
    const many = group.kind === "stack" ? Math.max(step - space, b.wide ? 78 : 46) : step - space;
    at = group.kind === "open" ? openBlock(b, group.blocks[0], at) : closedBlock(b, group.blocks, at, many);
  });
  return at;
}

/** @param {boolean} wide @param {number} origin */
export const builder = (wide, origin) => new Builder(wide, origin);
