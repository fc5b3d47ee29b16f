// Arithmetic on attention maps that the page does itself, so that a click on a patch needs no request. The same
// definitions as the lab's own, which the tests hold against each other.

import { arrays, at, floats, query } from "./api.js";
import { selection, where } from "./state.js";

/** @typedef {import("./api.js").Run} Run */
/** @typedef {import("./api.js").AttentionLayer} AttentionLayer */
/** @typedef {import("./api.js").Tensor} Tensor */
/** @typedef {{map: Float32Array, size: number, tokens: number, pool: number}} AttentionMap `size` rows; pooled if less than `tokens` */
/** @typedef {{entropy: number, distance: number, diagonal_rank: number, diagonal_first: number, inside: number, inside_chance: number, near: number, near_chance: number}} Numbers */
/** @typedef {keyof Numbers} NumberName */

/** The chosen attention layer, whatever the address asked for. @param {Run} run @returns {AttentionLayer} */
export const chosenLayer = (run) => run.attention[Math.min(run.attention.length - 1, Math.max(0, selection.layer))];

/** The chosen head, if this layer has it. @param {AttentionLayer} layer @returns {number | "mean"} */
export const chosenHead = (layer) => (selection.head === "mean" || selection.head >= layer.heads || selection.head < 0 ? "mean" : selection.head);

/** The image at the chosen time. @param {Run} run @param {AbortSignal} [signal] */
export const loadInput = (run, signal) => arrays(at(run.id, `/input${query(where())}`), { signal });

/**
 * The chosen layer's and head's map, at the chosen time.
 * @param {Run} run
 * @param {AttentionLayer} layer
 * @param {AbortSignal} [signal]
 * @returns {Promise<AttentionMap>}
 */
export async function loadMap(run, layer, signal) {
  const path = at(run.id, `/attention${query({ ...where(), layer: layer.layer, head: chosenHead(layer) })}`);
  const { arrays: found, meta } = await arrays(path, { signal });
  const map = floats(found.map);
  return { map, size: found.map.shape[0], tokens: Number(meta.tokens) || layer.tokens, pool: Number(meta.pool) || 1 };
}

/**
 * How much of each patch is object: its mean brightness in the clean image, 0…1.
 * @param {Tensor} x0 (C,H,W), −1…1
 * @param {[number, number]} grid
 * @returns {Float32Array}
 */
export function brightness(x0, grid) {
  const [channels, height, width] = x0.shape;
  const [rows, cols] = grid;
  const data = floats(x0);
  const sum = new Float32Array(rows * cols);
  for (let i = 0; i < data.length; i += 1) {
    const row = Math.floor(((Math.floor(i / width) % height) * rows) / height);
    sum[row * cols + Math.floor(((i % width) * cols) / width)] += (data[i] + 1) / 2;
  }
  const share = (rows * cols) / (channels * height * width);
  return sum.map((value) => Math.min(1, Math.max(0, value * share)));
}

/** @param {ArrayLike<number>} values @returns {number} where the largest is */
export function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i += 1) if (values[i] > values[best]) best = i;
  return best;
}

/** The query patch: the chosen one, or the brightest. @param {ArrayLike<number>} mass @returns {number} */
export const chosenPatch = (mass) => (selection.patch === null ? argmax(mass) : Math.min(mass.length - 1, Math.max(0, selection.patch)));

/** Where a patch looks ("from": its row) or who looks at it ("to": its column). @param {AttentionMap} attention @param {number} patch @param {"from" | "to"} direction */
export function view({ map, size }, patch, direction) {
  if (direction === "from") return map.slice(patch * size, (patch + 1) * size);
  return Float32Array.from({ length: size }, (_, query) => map[query * size + patch]);
}

/** @param {number} a @param {number} b @param {number} cols @returns {{rows: number, cols: number}} how far apart two patches are */
function apart(a, b, cols) {
  return { rows: Math.abs(Math.floor(a / cols) - Math.floor(b / cols)), cols: Math.abs((a % cols) - (b % cols)) };
}

/**
 * One query's numbers from its row of the map.
 * @param {ArrayLike<number>} row
 * @param {number} patch
 * @param {[number, number]} grid
 * @param {ArrayLike<number>} mass object share of each patch
 * @returns {Numbers}
 */
export function numbersOf(row, patch, grid, mass) {
  const n = { entropy: 0, distance: 0, diagonal_rank: 1, diagonal_first: 0, inside: 0, inside_chance: 0, near: 0, near_chance: 0 };
  for (let k = 0; k < row.length; k += 1) {
    const a = row[k];
    const gap = apart(patch, k, grid[1]);
    const close = gap.rows <= 1 && gap.cols <= 1;
    if (a > 0) n.entropy -= a * Math.log2(a);
    n.distance += a * Math.hypot(gap.rows, gap.cols);
    if (a > row[patch]) n.diagonal_rank += 1;
    n.inside += a * mass[k];
    n.inside_chance += mass[k] / row.length;
    if (close) n.near += a;
    if (close) n.near_chance += 1 / row.length;
  }
  n.diagonal_first = n.diagonal_rank === 1 ? 1 : 0;
  return n;
}

/** The tokens that a row of a pooled map stands for, as [first, end). @param {number} row @param {AttentionMap} attention */
export function tokensOf(row, { size, tokens }) {
  return /** @type {[number, number]} */ ([Math.floor((row * tokens) / size), Math.ceil(((row + 1) * tokens) / size)]);
}

/** @param {number} patch @param {number} cols @returns {string} "patch 5 (row 1, column 1)", counted from 0 as in Python */
export const patchName = (patch, cols) => `patch ${patch} (row ${Math.floor(patch / cols)}, column ${patch % cols})`;

/** @param {number} value @returns {string} */
export const percent = (value) => `${(100 * value).toFixed(value < 0.0995 ? 2 : 1)}\u00a0%`;
