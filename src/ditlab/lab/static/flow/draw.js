/** A scene as SVG: edges below, boxes above. One tab stop; arrow keys walk from node to node. */
import { s } from "../draw/dom.js";

/**
 * @typedef {import("./layout.js").Scene} Scene
 * @typedef {import("./layout.js").Box} Box
 * @typedef {import("./model.js").Node} Node
 * @typedef {{shape: number[], data: ArrayLike<number>, color: (value: number) => number[], scale: number}} Pixels
 * @typedef {{describe: (node: Node) => string, onFocus: (node: Node) => void, onAct: (box: Box) => void,
 *   pixels: (kind: string) => Pixels | null}} Actions
 */

let count = 0;

/** @param {Scene} scene @param {string} title @param {string} description @param {Actions} actions @returns {SVGSVGElement} */
export function drawScene(scene, title, description, actions) {
  const id = `flow-${++count}`;
  const svg = s("svg", {
    class: "flow-svg", viewBox: `0 0 ${Math.ceil(scene.width)} ${Math.ceil(scene.height)}`, width: Math.ceil(scene.width),
    height: Math.ceil(scene.height), role: "group", "aria-labelledby": `${id}-title ${id}-desc`,
  }, s("title", { id: `${id}-title` }, title), s("desc", { id: `${id}-desc` }, description), arrowHeads(id));
  const frames = scene.boxes.filter((box) => box.shape === "frame");
  const others = scene.boxes.filter((box) => box.shape !== "frame");
  svg.append(...frames.map((box) => drawBox(box, actions)), ...edges(scene, id), ...others.map((box) => drawBox(box, actions)),
    s("g", { class: "flow-lights", "aria-hidden": "true" }));
  rove(svg);
  return svg;
}

/** @param {string} id */
function arrowHeads(id) {
  const head = (/** @type {string} */ kind) => s("marker", {
    id: `${id}-${kind}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto",
  }, s("path", { class: `flow-head flow-${kind}`, d: "M0 0.8L8 4L0 7.2Z" }));
  return s("defs", null, ["stream", "branch", "condition"].map(head));
}

/** @param {Scene} scene @param {string} id @returns {SVGElement[]} */
function edges(scene, id) {
  return scene.edges.flatMap((one) => {
    const path = s("path", {
      class: `flow-edge flow-${one.kind}`, d: one.d, "data-edge": one.id, "marker-end": one.arrow ? `url(#${id}-${one.kind})` : null,
    });
    if (!one.text || !one.at) return [path];
    const [x, y] = one.at;
    return [path, s("text", { class: `flow-shape flow-on-${one.kind}`, x, y, "text-anchor": one.anchor ?? "middle" }, one.text)];
  });
}

/** @param {Box} box @param {Actions} actions @returns {SVGGElement} */
function drawBox(box, actions) {
  const { node } = box;
  const acts = node && (box.does === "open" || box.does === "all" || (box.does === "section" && node.section));
  const group = s("g", {
    class: `flow-node flow-kind-${box.kind} flow-${box.shape}${acts ? " flow-acts" : ""}`, "data-node": node ? box.id : null,
  });
  group.append(...outline(box, actions), ...words(box));
  // Frames and symbols say nothing that the nodes inside do not.
  if (!node || box.shape === "frame") {
    group.setAttribute("aria-hidden", "true");
    return group;
  }
  const label = `${actions.describe(node)} ${hint(box, node)}`.trim();
  group.setAttribute("role", acts ? "button" : "img");
  group.setAttribute("aria-label", label);
  group.setAttribute("tabindex", "-1");
  group.addEventListener("pointerenter", () => actions.onFocus(node));
  group.addEventListener("focus", () => actions.onFocus(node));
  if (acts) group.addEventListener("click", () => actions.onAct(box));
  group.addEventListener("keydown", (event) => {
    if (!acts || (event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    actions.onAct(box);
  });
  return group;
}

/** @param {Box} box @param {Node} node */
function hint(box, node) {
  if (box.does === "open") return "Enter opens this block.";
  if (box.does === "all") return "Enter shows every block.";
  return node.section ? `Enter goes to its section, ${node.section}.` : "";
}

/** @param {Box} box @param {Actions} actions @returns {SVGElement[]} */
function outline(box, actions) {
  const { x, y, w, h } = box;
  const rect = (/** @type {number} */ dx, /** @type {string} */ name, r = 9) =>
    s("rect", { class: name, x: x - w / 2 + dx, y: y - h / 2 + dx, width: w, height: h, rx: r });
  if (box.shape === "circle") return [s("circle", { class: "flow-body", cx: x, cy: y, r: w / 2 })];
  if (box.shape === "stack") return [rect(8, "flow-body flow-behind"), rect(4, "flow-body flow-behind"), rect(0, "flow-body")];
  if (box.shape === "slab") return [rect(0, "flow-body"), ...chips(box)];
  if (box.shape === "image") return [...image(box, actions), rect(0, "flow-body flow-hollow", 4)];
  return [rect(0, "flow-body", box.shape === "frame" ? 14 : 9)];
}

/** Marks in a closed block, one for each part it holds. @param {Box} box */
function chips({ x, y, w, h, chips: kinds = [] }) {
  const upright = h > w;
  const size = Math.min(upright ? w : h, 60) * 0.42;
  return kinds.map((kind, i) => {
    const [cx, cy] = upright ? [x, y + 4 + 26 * i] : [x + w / 2 - 32 - 28 * (kinds.length - 1 - i), y];
    const [cw, ch] = upright ? [size, 14] : [20, size];
    return s("rect", { class: `flow-chip flow-chip-${kind}`, x: cx - cw / 2, y: cy - ch / 2, width: cw, height: ch, rx: 4 });
  });
}

/** An image as squares, so that it stays sharp at every size and in the saved picture; at most 32 a side.
 * @param {Box} box @param {Actions} actions @returns {SVGElement[]} */
function image(box, actions) {
  const pixels = actions.pixels(box.kind);
  if (!pixels) return [];
  const { shape, data, color, scale } = pixels;
  const [height, width] = shape.slice(-2);
  const skip = Math.ceil(Math.max(height, width) / 32);
  const [rows, cols] = [Math.floor(height / skip), Math.floor(width / skip)];
  const size = Math.min(box.w / cols, box.h / rows);
  const found = [];
  for (let row = 0; row < rows; row++) {
    for (let col = 0; col < cols; col++) {
      const [r, g, b] = color(data[row * skip * width + col * skip] / scale);
      found.push(s("rect", {
        x: (box.x - box.w / 2 + col * size).toFixed(2), y: (box.y - box.h / 2 + row * size).toFixed(2), width: (size + 0.4).toFixed(2),
        height: (size + 0.4).toFixed(2), fill: `rgb(${r},${g},${b})`,
      }));
    }
  }
  return [s("g", { class: "flow-pixels", "aria-hidden": "true", "shape-rendering": "crispEdges" }, found)];
}

/** @param {Box} box @returns {SVGElement[]} */
function words(box) {
  const { x, y, w, h } = box;
  if (!box.text) return [];
  const text = (/** @type {number} */ tx, /** @type {number} */ ty, /** @type {string} */ words, props = {}) =>
    s("text", { class: "flow-word", x: tx, y: ty, "text-anchor": "middle", ...props }, words);
  if (box.shape === "image") return [text(x, box.above ? y - h / 2 - 7 : y + h / 2 + 16, box.text, { class: "flow-word flow-caption" })];
  if (box.shape === "frame") return [text(x - w / 2 + 14, y - h / 2 + 19, box.text, { "text-anchor": "start", class: "flow-word flow-heading" })];
  if (box.below) return [text(x, y + 5, box.text), text(x, y + h / 2 + 16, "positions", { class: "flow-word flow-caption" })];
  if (box.shape === "slab" && h > w) return [text(x, y - h / 2 + 26, box.text, w < 18 ? { class: "flow-word flow-tiny" } : {})];
  if (box.shape === "slab") return [text(x - w / 2 + 14, y + 4.5, box.text, { "text-anchor": "start" })];
  if (box.shape === "stack") return box.text.split("\n").map((line, i, all) => text(x, y + 4.5 + 20 * (i - (all.length - 1) / 2), line, i > 1 ? { class: "flow-word flow-caption" } : {}));
  if (box.turned) return [text(x, y + 4.5, fitted(box.text, h), { transform: `rotate(90 ${x} ${y})` })];
  return [text(x, y + 4.5, fitted(box.text, w))];
}

/** A title that has room in its box: the card tells all of it. @param {string} text @param {number} room px */
function fitted(text, room) {
  const most = Math.max(3, Math.floor((room - 6) / 6.8));
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/** Roving focus. @param {SVGSVGElement} svg */
function rove(svg) {
  const nodes = /** @type {SVGGElement[]} */ ([...svg.querySelectorAll("g[tabindex]")]);
  nodes[0]?.setAttribute("tabindex", "0");
  svg.addEventListener("keydown", (event) => {
    const here = nodes.indexOf(/** @type {SVGGElement} */ (document.activeElement));
    const moves = /** @type {Record<string, number>} */ ({
      ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: nodes.length - 1,
    });
    if (here < 0 || !(event.key in moves)) return;
    event.preventDefault();
    const next = nodes[Math.max(0, Math.min(nodes.length - 1, moves[event.key]))];
    nodes.forEach((node) => node.setAttribute("tabindex", node === next ? "0" : "-1"));
    next.focus();
  });
}
