// Arithmetic on attention maps that the page does itself, so that a click on a patch needs no request. The same
// definitions as the lab's own, which the tests hold against each other.

import { arrays, at, floats, query } from "../page/api.js";
import { selection, where } from "../page/state.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/api.js").AttentionLayer} AttentionLayer */
/** @typedef {import("../page/api.js").Tensor} Tensor */
/** @typedef {"entropy" | "distance" | "diagonal_rank" | "inside" | "near"} NumberName */
/**
 * @typedef {object} AttentionMap
 * @property {Float32Array} map `size` rows; pooled if less than `tokens`
 * @property {number} size
 * @property {number} tokens
 * @property {number} pool
 * @property {Record<NumberName, Float32Array>} queries each query's numbers, never pooled
 * @property {Float32Array} mass how much of each patch is object, 0…1
 * @property {Float32Array[]} toTokens of each condition token in the sequence, what each query gives it; none without such tokens
 */

/** The chosen attention layer, whatever the address asked for. @param {Run} run @returns {AttentionLayer} */
export const chosenLayer = (run) => run.attention[Math.min(run.attention.length - 1, Math.max(0, selection.layer))];

/** The chosen head, if this layer has it. @param {AttentionLayer} layer @param {import("../page/stale.js").Selection} [chosen] @returns {number | "mean"} */
export const chosenHead = (layer, { head } = selection) => (head === "mean" || head >= layer.heads || head < 0 ? "mean" : head);

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
  return {
    toTokens: columns(found.to_tokens), map, size: found.map.shape[0], tokens: Number(meta.tokens) || layer.tokens, pool: Number(meta.pool) || 1, mass: floats(found.object_share),
    queries: { entropy: floats(found.entropy), distance: floats(found.distance), diagonal_rank: floats(found.diagonal_rank), inside: floats(found.inside), near: floats(found.near) },
  };
}

/** @param {Tensor | undefined} table (N, K) @returns {Float32Array[]} K columns */
function columns(table) {
  if (!table) return [];
  const [rows, count] = table.shape;
  const data = floats(table);
  return Array.from({ length: count }, (_, k) => Float32Array.from({ length: rows }, (_, i) => data[i * count + k]));
}

/** Where a patch looks ("from": its row) or who looks at it ("to": its column). @param {Pick<AttentionMap, "map" | "size">} attention @param {number} patch @param {"from" | "to"} direction */
export function view({ map, size }, patch, direction) {
  if (direction === "from") return map.slice(patch * size, (patch + 1) * size);
  return Float32Array.from({ length: size }, (_, query) => map[query * size + patch]);
}

/** How many patches are a patch itself or one of its up to eight neighbours. @param {number} patch @param {[number, number]} grid */
export function neighbours(patch, [rows, cols]) {
  const along = (/** @type {number} */ place, /** @type {number} */ count) => Math.min(count - 1, place + 1) - Math.max(0, place - 1) + 1;
  return along(Math.floor(patch / cols), rows) * along(patch % cols, cols);
}

/** The tokens that a row of a pooled map stands for, as [first, end). @param {number} row @param {AttentionMap} attention */
export function tokensOf(row, { size, tokens }) {
  return /** @type {[number, number]} */ ([Math.floor((row * tokens) / size), Math.ceil(((row + 1) * tokens) / size)]);
}

/** Layer, head and time in words, for captions. @param {AttentionLayer} layer @param {number} index @param {import("../page/stale.js").Selection} [chosen] */
export function placeName(layer, index, chosen = selection) {
  const head = chosenHead(layer, chosen);
  return `layer ${index}, ${head === "mean" ? "average of heads" : `head ${head}`}, t = ${chosen.t.toFixed(2)}`;
}
