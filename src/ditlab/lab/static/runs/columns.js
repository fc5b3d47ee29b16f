// Which runs stand side by side: columns as text in the page's address, and what of each run they stand for.

import { nearest } from "../draw/math.js";
import { choices } from "../page/api.js";
import { selection } from "../page/state.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/api.js").RunSummary} RunSummary */
/** @typedef {import("../page/api.js").AttentionLayer} AttentionLayer */
/** @typedef {"t" | "h" | "s"} Pair the time, the layer and head, the seed */
/** @typedef {{run: string, step: number | null, t: number | null, layer: number | null, head: number | "mean" | null,
 *   seed: number | null, label: number | null}} Column as chosen; null: what the page or the run says */
/** @typedef {{columns: Column[], same: Pair[], seed: number, n: number, axis: "step" | "seconds"}} Chosen `same`: what all
 *   columns share; `n`: how many samples are measured */
/**
 * @typedef {object} Place a column of a run that is there
 * @property {string} letter
 * @property {number} index
 * @property {Column} column
 * @property {Run} run
 * @property {number} step
 * @property {number} t
 * @property {AttentionLayer | null} layer
 * @property {number | "mean"} head
 * @property {number} seed
 * @property {number | null} label
 */

export const LETTERS = "ABCD";
export const COUNTS = [100, 200, 500, 1000];

/** @param {string} run @returns {Column} */
export const plain = (run) => ({ run, step: null, t: null, layer: null, head: null, seed: null, label: null });

/** @param {Chosen} chosen @returns {{c: string, cs: string}} as the address holds them */
export function write({ columns, same, seed, n, axis }) {
  const text = (/** @type {Column} */ { run, step, t, layer, head, seed: own, label }) => [run, step, t, layer, head, own, label].map((value) => value ?? "").join("_");
  return { c: columns.map(text).join("*"), cs: [same.join(""), seed, n, axis].join("_") };
}

/** @param {string | undefined} text @param {number} low @param {number} high @returns {number | null} */
function whole(text, low, high) {
  const value = Number(text);
  return text && Number.isInteger(value) && value >= low && value <= high ? value : null;
}

/** @param {string} text @returns {Column} */
function parsed(text) {
  const [run, step, t, layer, head, seed, label] = text.split("_");
  const time = Number(t);
  return {
    run, step: whole(step, 0, 1e8), t: t && time >= 0 && time <= 1 ? time : null, layer: whole(layer, 0, 1e4),
    head: head === "mean" ? "mean" : whole(head, 0, 1e4), seed: whole(seed, 0, 2 ** 31), label: whole(label, 0, 2 ** 31),
  };
}

/** A time far from the page's own. */
function otherTime() {
  const far = selection.t < 0.5 ? 0.9 : 0.1;
  const held = choices()?.t;
  return held?.length ? held[nearest(held, far)] : far;
}

/** Without a word in the address: this run and the next. A run that is alone stands at two checkpoints; one that has only
 * one, or a file, which holds only one, at two times; points, which nothing is asked about at a time, at two seeds. @param {Run} run @param {RunSummary[]} runs @returns {{columns: Column[], same: Pair[]}} */
function usual(run, runs) {
  const here = runs.findIndex((one) => one.id === run.id);
  const other = runs[(here + 1) % runs.length];
  const first = plain(run.id);
  if (other && other.id !== run.id) return { columns: [first, plain(other.id)], same: ["t", "s"] };
  const early = run.checkpoints.find((step) => step !== (selection.step ?? run.step));
  if (early !== undefined && !choices()) return { columns: [{ ...first, step: early }, first], same: ["t", "h", "s"] };
  if (run.shape.length === 3) return { columns: [first, { ...first, t: otherTime() }], same: ["h", "s"] };
  return { columns: [first, { ...first, seed: 1 }], same: ["t", "h"] };
}

/** What the address says; nonsense in it falls back to what is usual. @param {Run} run @param {RunSummary[]} runs @returns {Chosen} */
export function read(run, runs) {
  const wanted = selection.c.split("*").slice(0, LETTERS.length).map(parsed).filter((column) => runs.some((one) => one.id === column.run));
  const own = usual(run, runs);
  const columns = wanted.length > 1 ? wanted : own.columns;
  const [same, seed, n, axis] = selection.cs.split("_");
  const letters = /** @type {Pair[]} */ (["t", "h", "s"]);
  const count = whole(n, 1, 5000) ?? 0;
  return {
    columns, same: selection.cs ? letters.filter((one) => same.includes(one)) : own.same,
    seed: whole(seed, 0, 2 ** 31) ?? 0, n: COUNTS.includes(count) ? count : COUNTS[0], axis: axis === "seconds" ? "seconds" : "step",
  };
}

/** The layer that is asked for, or the last one before it. @param {Run} run @param {number} wanted */
const layerOf = (run, wanted) => run.attention[Math.min(run.attention.length - 1, Math.max(0, wanted))] ?? null;

/** A column with all it leaves open filled in. @param {Column} column @param {Run} run @param {number} index @param {Chosen} chosen @returns {Place} */
export function placed(column, run, index, { same, seed }) {
  const held = choices()?.t;
  const t = same.includes("t") ? selection.t : column.t ?? selection.t;
  const together = same.includes("h");
  const layer = layerOf(run, (together ? null : column.layer) ?? selection.layer);
  const head = (together ? null : column.head) ?? selection.head;
  const here = run.id === selection.run && selection.step !== null ? selection.step : run.step ?? 0;
  return {
    letter: LETTERS[index], index, column, run, layer,
    step: column.step !== null && run.checkpoints.includes(column.step) ? column.step : here,
    t: held?.length ? held[nearest(held, t)] : t,
    head: head === "mean" || (layer && head < layer.heads && head >= 0) ? head : "mean",
    seed: same.includes("s") ? seed : column.seed ?? seed,
    label: column.label !== null && run.num_classes !== null && column.label < run.num_classes ? column.label : null,
  };
}

/** The parameters that name the weights of a column. @param {Place} place */
export const weightsOf = ({ step }) => ({ step, weights: selection.weights });

/** "A" and its run. @param {Place} place */
export const nameOf = ({ letter, run }) => `${letter} ${run.name.length > 24 ? `${run.name.slice(0, 23)}…` : run.name}`;

/** "A and B". @param {Place[]} places */
export const lettersOf = (places) => {
  const all = places.map((place) => place.letter);
  return all.length < 2 ? all.join("") : `${all.slice(0, -1).join(", ")} and ${all[all.length - 1]}`;
};

/** Places alike, in the order of the first of each kind. @param {Place[]} places @param {(place: Place) => string} key @returns {Place[][]} */
export function grouped(places, key) {
  /** @type {Map<string, Place[]>} */
  const groups = new Map();
  for (const place of places) groups.set(key(place), [...(groups.get(key(place)) ?? []), place]);
  return [...groups.values()];
}
