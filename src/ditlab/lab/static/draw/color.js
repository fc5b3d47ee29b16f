// Colours with a meaning. All scales keep their order for colour-blind readers and in grey print.

import { h } from "./dom.js";

/** @typedef {[number, number, number]} Rgb */

/** The chosen query patch, the key patch, and what the pointer is on: canvas colours, readable in both themes. */
export const QUERY = "#f28e1c";
export const KEY = "#2f7fd8";

// Even steps of lightness from dark violet over teal to yellow; colours between are mixed linearly.
/** @type {Rgb[]} */
const VIRIDIS = [
  [68, 1, 84], [72, 36, 117], [65, 68, 135], [53, 95, 141], [42, 120, 142], [33, 145, 140], [34, 168, 132],
  [68, 191, 112], [122, 209, 81], [189, 223, 38], [253, 231, 37],
];
/** @type {Rgb[]} */
const BLUE_ORANGE = [[18, 73, 140], [74, 139, 201], [172, 205, 232], [250, 250, 248], [250, 203, 150], [231, 136, 45], [158, 74, 6]];

/** @param {Rgb[]} points @param {number} v 0…1 @returns {Rgb} */
function mix(points, v) {
  const place = Math.min(1, Math.max(0, Number.isFinite(v) ? v : 0)) * (points.length - 1);
  const low = Math.min(points.length - 2, Math.floor(place));
  const share = place - low;
  const [from, to] = [points[low], points[low + 1]];
  const between = (/** @type {number} */ i) => Math.round(from[i] + (to[i] - from[i]) * share);
  return [between(0), between(1), between(2)];
}

/** Amounts: dark violet (0) to yellow (1). @param {number} v 0…1 @returns {Rgb} */
export const sequential = (v) => mix(VIRIDIS, v);

/** Signed values: blue (−1), white (0), orange (+1). @param {number} v −1…1 @returns {Rgb} */
export const diverging = (v) => mix(BLUE_ORANGE, (v + 1) / 2);

/** Pixels: black (−1) to white (+1). @param {number} v −1…1 @returns {Rgb} */
export function grey(v) {
  const level = Math.round(Math.min(1, Math.max(0, (v + 1) / 2)) * 255);
  return [level, level, level];
}

/** @type {Record<string, (v: number) => Rgb>} the scales by name, each over 0…1 */
const SCALES = { sequential, diverging: (v) => diverging(2 * v - 1), grey: (v) => grey(2 * v - 1) };

/**
 * A colour bar with its ends named.
 * @param {{scale: "sequential" | "diverging" | "grey", low: string, high: string, label: string}} options
 * @returns {HTMLElement}
 */
export function legend({ scale, low, high, label }) {
  const canvas = h("canvas", { class: "legend-bar", width: 128, height: 1, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  for (let x = 0; x < 128 && context; x += 1) {
    context.fillStyle = `rgb(${SCALES[scale](x / 127).join(" ")})`;
    context.fillRect(x, 0, 1, 1);
  }
  return h("div", { class: "legend" }, h("span", { class: "legend-label" }, label),
    h("span", { class: "legend-end" }, low), canvas, h("span", { class: "legend-end" }, high));
}
