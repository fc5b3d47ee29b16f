/** Any network that is no diffusion transformer, as a chain of its modules: what its hooks saw tells how they join. */
import { rounded } from "./layout.js";
import { shapeText } from "./model.js";

/**
 * @typedef {import("./model.js").Node} Node
 * @typedef {import("./layout.js").Scene} Scene
 * @typedef {import("./layout.js").Edge} Edge
 * @typedef {{node: Node, y: number, w: number, h: number}} Placed
 */

/** Takes one number a sample, so t or a label: the conditioning branch. @param {Node} node */
const conditions = (node) => node.kind === "time" || node.kind === "label" || (node.kind === "other" && (node.in[0]?.length ?? 0) < 2);

/** @param {number[] | undefined} a @param {number[] | undefined} b */
const same = (a, b) => a !== undefined && b !== undefined && a.join() === b.join();

/** Does a node take the condition, beside its input or concatenated to it? @param {Node} node @param {Node} before @param {Node[]} sides */
function takes(node, before, sides) {
  const width = sides.reduce((sum, side) => sum + side.out[side.out.length - 1], 0);
  const beside = node.in.slice(1).some((shape) => sides.some((side) => same(shape, side.out)));
  return beside || (node.in[0].length === 2 && node.in[0][1] === before.out[before.out.length - 1] + width);
}

/** Long ways: from each resolution on the way down to where as many channels join on the way up.
 * @param {Placed[]} chain @returns {[Placed, Placed][]} */
function skips(chain) {
  const kept = [];
  /** @type {[Placed, Placed][]} */
  const found = [];
  for (const [i, one] of chain.entries()) {
    const extra = i > 0 && one.node.in[0].length > 2 ? one.node.in[0][1] - chain[i - 1].node.out[1] : 0;
    const last = kept[kept.length - 1];
    if (extra > 0 && last && last.node.out[1] === extra) found.push([/** @type {Placed} */ (kept.pop()), one]);
    if (one.node.name.startsWith("down")) kept.push(one);
  }
  return found;
}

/** How many pixels wide a feature map is; 0 for vectors. @param {number[]} shape */
const extent = (shape) => (shape.length > 3 ? shape[shape.length - 1] : 0);

/** The wider a box, the finer the resolution there. @param {Node[]} nodes @param {number} least @param {number} most @returns {Placed[]} */
function place(nodes, least, most) {
  const finest = Math.max(1, ...nodes.map((node) => extent(node.out)));
  let y = 26;
  return nodes.map((node, i) => {
    const image = (node.kind === "input" || node.kind === "output") && node.out.length > 2;
    const [w, h] = image ? [92, 92] : [least + ((most - least) * extent(node.out)) / finest, 40];
    y += i ? 34 : 0;
    const placed = { node, y: y + h / 2, w, h };
    y += h;
    return placed;
  });
}

/** @param {Node[]} nodes @param {number} width @returns {Scene} */
export function chainScene(nodes, width) {
  const narrow = width < 520;
  const [x, least, most, rail] = narrow ? [122, 184, 208, Math.max(270, Math.min(width, 340) - 12)] : [250, 196, 330, 480];
  const sides = nodes.filter(conditions);
  const chain = place(nodes.filter((node) => !sides.includes(node)), least, most);
  const last = chain[chain.length - 1];
  /** @type {Scene} */
  const scene = { width: narrow ? rail + 12 : 560, height: last.y + last.h / 2 + 30, boxes: [], edges: [], steps: [] };
  for (const { node, y, w, h } of chain) {
    const shape = h > 40 ? "image" : "box";
    scene.boxes.push({ id: node.name, shape, x, y, w, h, text: node.title, kind: node.kind, node, does: "section", above: node.kind === "input" });
  }
  const tops = condition(scene, sides, narrow ? rail - 62 : rail, 46);
  chain.forEach((_, i) => link(scene, chain, i, x, takesFrom(chain, i, sides) ? { rail, top: tops } : null));
  for (const [from, to] of skips(chain)) arc(scene, from, to, x);
  return scene;
}

/** @param {Placed[]} chain @param {number} i @param {Node[]} sides */
const takesFrom = (chain, i, sides) => i > 0 && sides.length > 0 && takes(chain[i].node, chain[i - 1].node, sides);

/** The boxes of time and label, at the top right. @param {Scene} scene @param {Node[]} sides @param {number} x @param {number} y
 * @returns {number} where their line starts */
function condition(scene, sides, x, y) {
  sides.forEach((node, i) => {
    scene.boxes.push({ id: node.name, shape: "box", x, y: y + 52 * i, w: 124, h: 40, text: node.name, kind: "time", node, does: "section" });
  });
  return y + 52 * (sides.length - 1) + 20;
}

/** The edge into a node, and the condition's if it takes it. @param {Scene} scene @param {Placed[]} chain @param {number} i @param {number} x
 * @param {{rail: number, top: number} | null} from */
function link(scene, chain, i, x, from) {
  const here = chain[i];
  const before = chain[i - 1];
  /** @type {[string, number, number][]} */
  const edges = [];
  if (before) {
    const [top, bottom] = [before.y + before.h / 2, here.y - here.h / 2];
    const [gives, gets] = [shapeText(before.node.out), shapeText(here.node.in[0])];
    const text = gives === gets ? gives : `${gives} → ${gets}`;
    scene.edges.push({ id: `in-${i}`, kind: "stream", arrow: true, d: rounded([[x, top], [x, bottom]]), text, at: [x + 9, (top + bottom) / 2 + 4], anchor: "start" });
    edges.push([`in-${i}`, 0, 1]);
  }
  if (from) {
    scene.edges.push({ id: `c-${i}`, kind: "condition", arrow: true, d: rounded([[from.rail, from.top], [from.rail, here.y], [x + here.w / 2, here.y]]) });
    edges.push([`c-${i}`, 0, 1]);
  }
  scene.steps.push({ edges, node: here.node.name });
}

/** @param {Scene} scene @param {Placed} from @param {Placed} to @param {number} x */
function arc(scene, from, to, x) {
  // Outer arcs for finer resolutions: their boxes are wider too.
  const side = x - Math.max(from.w, to.w) / 2 - 14;
  const id = `skip-${from.node.name}`;
  scene.edges.push({ id, kind: "branch", arrow: true, d: rounded([[x - from.w / 2, from.y + 8], [side, from.y + 8], [side, to.y], [x - to.w / 2, to.y]]) });
  scene.steps.find((step) => step.node === to.node.name)?.edges.push([id, 0, 1]);
}
