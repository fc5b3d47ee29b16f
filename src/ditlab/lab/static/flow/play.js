/** A batch on its way through the diagram: lights run along the edges, and each node they reach lights up. */
import { s } from "../draw/dom.js";

/**
 * @typedef {import("./layout.js").Scene} Scene
 * @typedef {{stop: () => void}} Playing
 */

const STEP = 430;

/** @param {SVGSVGElement} svg @param {string | null} name */
export function lightUp(svg, name) {
  for (const group of svg.querySelectorAll("g[data-node]")) {
    group.classList.toggle("flow-lit", group.getAttribute("data-node") === name);
  }
}

/** @param {SVGSVGElement} svg @param {Scene} scene @param {(node: string) => void} onNode @param {() => void} onEnd @returns {Playing} */
export function play(svg, scene, onNode, onEnd) {
  const layer = svg.querySelector(".flow-lights");
  const paths = new Map([...svg.querySelectorAll("path[data-edge]")].map((path) => [path.getAttribute("data-edge"), /** @type {SVGPathElement} */ (path)]));
  // Without motion the light jumps from node to node instead, at a pace to read along.
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const pace = still ? 900 : STEP;
  const steps = still ? scene.steps.filter((step) => step.node) : scene.steps;
  const start = performance.now();
  let current = -1;
  let frame = 0;

  const finish = () => {
    cancelAnimationFrame(frame);
    layer?.replaceChildren();
    lightUp(svg, null);
  };
  const tick = (/** @type {number} */ now) => {
    const place = Math.max(0, now - start) / pace;
    const index = Math.floor(place);
    if (!svg.isConnected || index >= steps.length) {
      finish();
      onEnd();
      return;
    }
    if (!still) layer?.replaceChildren(...lights(steps[index], ease(place - index), paths));
    // A node lights up once the batch has arrived there.
    const arrived = still || place - index > 0.85 ? index : index - 1;
    if (arrived !== current) {
      current = arrived;
      const node = steps[arrived]?.node;
      if (node) {
        lightUp(svg, node);
        onNode(node);
      }
    }
    frame = requestAnimationFrame(tick);
  };
  frame = requestAnimationFrame(tick);
  return { stop: finish };
}

/** @param {number} v */
const ease = (v) => (v < 0.5 ? 2 * v * v : 1 - (2 - 2 * v) ** 2 / 2);

/** @param {Scene["steps"][number]} step @param {number} share @param {Map<string | null, SVGPathElement>} paths @returns {SVGElement[]} */
function lights(step, share, paths) {
  return step.edges.flatMap(([id, from, to]) => {
    const path = paths.get(id);
    if (!path) return [];
    const at = path.getPointAtLength((from + (to - from) * share) * path.getTotalLength());
    const kind = path.classList.contains("flow-condition") ? "flow-light flow-light-condition" : "flow-light";
    return [s("circle", { class: `${kind} flow-glow`, cx: at.x, cy: at.y, r: 11 }), s("circle", { class: kind, cx: at.x, cy: at.y, r: 5 })];
  });
}
