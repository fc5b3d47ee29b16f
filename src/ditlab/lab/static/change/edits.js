// What is changed in the network: the words of the selection's `edits`, such as "head:2.1", and what they mean.

import { choices } from "../page/api.js";
import { select, selection } from "../page/state.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {{kind: string, place: number, part: string | null}} Edit */

const KINDS = ["head", "uniform", "local", "gate", "block", "time"];
const GRAMMAR = /^(head:\d{1,4}\.\d{1,4}|uniform:\d{1,4}(\.\d{1,4})?|local:\d{1,4}\.\d{1,4}|gate:\d{1,4}\.(attn|mlp)|block:\d{1,4}|time:(0|1|0\.\d{1,6}))$/;

/** @param {string} word @returns {Edit} */
export function read(word) {
  const [kind, rest] = word.split(":");
  if (kind === "time") return { kind, place: Number(rest), part: null };
  const [place, part] = rest.split(".");
  return { kind, place: Number(place), part: part ?? null };
}

/** Is it an edit, and of something this run has? @param {Run} run @param {string} word */
export function isKnown(run, word) {
  if (!GRAMMAR.test(word)) return false;
  const { kind, place, part } = read(word);
  if (kind === "time") return true;
  const layer = run.attention[place];
  if (kind === "head" || kind === "uniform") return Boolean(layer) && (part === null || Number(part) < layer.heads);
  if (kind === "local") return run.network === "dit" && Boolean(layer);
  return run.network === "dit" && Boolean(layer) && (kind === "block" || run.has_gates);
}

/** What is changed now. @returns {string[]} */
export const words = () => selection.edits.split(" ").filter(Boolean);

/** @param {string} word */
export const has = (word) => words().includes(word);

/** In one order, whatever came first: the same changes are asked for by the same address. @param {string[]} list */
function ordered(list) {
  const rank = (/** @type {string} */ word) => {
    const { kind, place, part } = read(word);
    return [KINDS.indexOf(kind), place, part === "attn" ? 0 : part === "mlp" ? 1 : Number(part ?? -1)];
  };
  return [...new Set(list)].sort((a, b) => {
    const [one, other] = [rank(a), rank(b)];
    return one[0] - other[0] || one[1] - other[1] || one[2] - other[2];
  }).join(" ");
}

/** Leave out what this run does not have. @param {Run} run @param {string[]} list */
export function change(run, list) {
  const held = choices()?.changes.edits;
  const known = list.filter((word) => isKnown(run, word) && (!held || held.includes(word)));
  // A file holds answers for one change at a time: the latest.
  select({ edits: ordered(held ? known.slice(-1) : known) });
}

/** Make a change, or take it back. @param {Run} run @param {string} word */
export const toggle = (run, word) => change(run, has(word) ? words().filter((other) => other !== word) : [...words(), word]);

/** A part of the network in words: "head 1 of block 2". @param {Run} run @param {string} word */
export function part(run, word) {
  const { kind, place, part: which } = read(word);
  const where = run.network === "dit" ? `block ${place}` : `attention ${place}`;
  if (kind === "head") return `head ${which} of ${where}`;
  if (kind === "gate") return `${which === "attn" ? "attention" : "MLP"} of ${where}`;
  return where;
}

/** A change in words. @param {Run} run @param {string} word */
export function inWords(run, word) {
  const { kind, place, part: which } = read(word);
  if (kind === "time") return `the network is told t = ${place}`;
  if (kind === "uniform") return `${which === null ? part(run, word) : part(run, `head:${place}.${which}`)} looks everywhere equally`;
  if (kind === "local") return `patches of ${part(run, `block:${place}`)} see ${which === "0" ? "only themselves" : `at most ${which} away`}`;
  return `${part(run, word)} off`;
}
