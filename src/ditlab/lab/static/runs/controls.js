// The controls of the comparison: which run, checkpoint, time, head, seed and label each column shows, and what all share.

import { h } from "../draw/dom.js";
import { slider } from "../draw/player.js";
import { choices } from "../page/api.js";
import { stepOptions } from "../page/bar.js";
import { classChoices } from "../page/conditions.js";
import { onChange, select, selection } from "../page/state.js";
import { COUNTS, LETTERS, plain } from "./columns.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/api.js").RunSummary} RunSummary */
/** @typedef {import("./columns.js").Chosen} Chosen */
/** @typedef {import("./columns.js").Column} Column */
/** @typedef {import("./columns.js").Pair} Pair */
/** @typedef {import("./columns.js").Place} Place */
/** @typedef {(change: Partial<Chosen>) => void} Choose */

let count = 0;

/** @param {string} text @param {(id: string) => HTMLElement} make */
function field(text, make) {
  const id = `runs-${(count += 1)}`;
  return h("div", { class: "setting" }, h("label", { for: id }, text), make(id));
}

/** @param {string} text @param {[string, string][]} options @param {string} value @param {(value: string) => void} onPick */
export const choice = (text, options, value, onPick) => field(text, (id) => h("select", {
  id, value, onchange: (/** @type {Event} */ event) => onPick(/** @type {HTMLSelectElement} */ (event.target).value),
}, options.map(([key, name]) => h("option", { value: key }, name))));

/** @param {string} text @param {{min: number, max: number, step: number, value: number}} props @param {(value: number) => void} onPick */
const amount = (text, props, onPick) => field(text, (id) => h("input", { id, type: "number", ...props, onchange: (/** @type {Event} */ event) => {
  const input = /** @type {HTMLInputElement} */ (event.target);
  if (Number.isFinite(input.valueAsNumber) && input.checkValidity()) onPick(input.valueAsNumber);
  else input.reportValidity();
} }));

/** @param {number} size @returns {[string, string][]} */
const numbers = (size) => Array.from({ length: size }, (_, i) => [String(i), String(i)]);

/** @param {string} text */
const headNumber = (text) => (text === "mean" ? "mean" : Number(text));

/** Seeds an exported file has answers for. */
const heldSeeds = () => choices() && [...new Set(choices()?.settings.map((one) => one.seed))].sort((a, b) => a - b);

/** @param {number} seed @param {(seed: number) => void} onPick */
function seedChoice(seed, onPick) {
  const held = heldSeeds();
  if (held) return choice("Seed", held.map((one) => [String(one), String(one)]), String(seed), (text) => onPick(Number(text)));
  return amount("Seed", { min: 0, max: 2 ** 31, step: 1, value: seed }, onPick);
}

/** @param {Place} place @param {(part: Partial<Column>) => void} change */
function timeChoice(place, change) {
  const held = choices()?.t;
  if (held?.length) return choice("Time t", held.map((t) => [String(t), t.toFixed(2)]), String(place.t), (text) => change({ t: Number(text) }));
  return amount("Time t", { min: 0, max: 1, step: 0.05, value: place.t }, (t) => change({ t }));
}

/** @param {Place} place @param {(part: Partial<Column>) => void} change */
function headChoices({ run, layer, head }, change) {
  if (!layer) return [];
  return [
    choice("Layer", numbers(run.attention.length), String(run.attention.indexOf(layer)), (text) => change({ layer: Number(text) })),
    choice("Head", [["mean", "average"], ...numbers(layer.heads)], String(head), (text) => change({ head: headNumber(text) })),
  ];
}

/**
 * One column's controls. A run that cannot be opened has no place, and says why.
 * @param {Chosen} chosen @param {number} index @param {Place | string} place @param {RunSummary[]} runs @param {Choose} choose
 */
export function columnControls(chosen, index, place, runs, choose) {
  const letter = LETTERS[index];
  const { columns, same } = chosen;
  const put = (/** @type {Column} */ column) => choose({ columns: columns.map((one, i) => (i === index ? column : one)) });
  const change = (/** @type {Partial<Column>} */ part) => put({ ...columns[index], ...part });
  // Times and seeds go along to another run; its checkpoints, heads and labels are others.
  const go = (/** @type {string} */ run) => put({ ...plain(run), t: columns[index].t, seed: columns[index].seed });
  const remove = columns.length > 2 && h("button", { type: "button", class: "tool", onclick: () => choose({ columns: columns.filter((_, i) => i !== index) }) }, `Remove ${letter}`);
  const run = runs.length > 1 && choice("Run", runs.map(({ id, name }) => [id, name]), columns[index].run, go);
  if (typeof place === "string") return fieldset(letter, index, run, h("p", { class: "trouble" }, place), remove);
  const { num_classes: classes, data } = place.run;
  const steps = stepOptions(place.run, place.step);
  const images = data !== "points";
  return fieldset(letter, index, run,
    steps.length > 1 && choice("Checkpoint", steps, String(place.step), (text) => change({ step: Number(text) })),
    images && !same.includes("t") && timeChoice(place, change),
    !same.includes("h") && headChoices(place, change),
    !same.includes("s") && seedChoice(place.seed, (seed) => change({ seed })),
    classes !== null && !choices() && choice("Label", [["", "its own"], ...classChoices(place.run)], String(place.label ?? ""), (text) => change({ label: text === "" ? null : Number(text) })),
    remove);
}

/** @param {string} letter @param {number} index @param {...import("../draw/dom.js").Child} parts */
const fieldset = (letter, index, ...parts) => h("fieldset", { class: "runs-column" },
  h("legend", { class: "read-out-only" }, `Column ${letter}`), chip(letter, index), parts);

/** The letter of a column in its colour. @param {string} letter @param {number} index */
export const chip = (letter, index) => h("span", { class: `side runs-chip chart-colour-${index}` }, letter);

/** @type {[Pair, string][]} */
const PAIRS = [["t", "time t"], ["h", "layer and head"], ["s", "seed"]];

/** The switches "the same in all columns", what is shared, and one more column. @param {Chosen} chosen @param {(Place | string)[]} places @param {RunSummary[]} runs @param {Choose} choose */
export function sharedControls(chosen, places, runs, choose) {
  const { columns, same, seed } = chosen;
  const there = /** @type {Place[]} */ (places.filter((place) => typeof place !== "string"));
  const flip = (/** @type {Pair} */ one) => choose({ same: same.includes(one) ? same.filter((other) => other !== one) : [...same, one] });
  const switches = PAIRS.map(([one, text]) => {
    const id = `runs-same-${one}`;
    return h("span", { class: "runs-switch" }, h("input", { type: "checkbox", id, checked: same.includes(one), onchange: () => flip(one) }), h("label", { for: id }, text));
  });
  const next = runs.find((run) => columns.every((column) => column.run !== run.id)) ?? runs[0];
  const add = columns.length < LETTERS.length && h("button", { type: "button", class: "tool", onclick: () => choose({ columns: [...columns, plain(next.id)] }) }, "Add a column");
  return h("div", { class: "runs-shared" },
    h("fieldset", { class: "runs-same" }, h("legend", null, "The same in all columns"), h("div", null, switches)),
    same.includes("t") && there.some(({ run }) => run.data !== "points") && sharedTime(there),
    same.includes("h") && sharedHeads(there), same.includes("s") && seedChoice(seed, (value) => choose({ seed: value })), add);
}

/** The page's own time, which the bar has a slider for, unless it is of points. @param {Place[]} places */
function sharedTime(places) {
  if (!places.some(({ run }) => run.id === selection.run && run.data === "points")) return null;
  const held = choices()?.t;
  const range = held?.length ? { values: held } : { min: 0, max: 1, step: 0.01 };
  const time = slider({ label: "Time t", value: selection.t, format: (t) => t.toFixed(2), ...range }, (t) => select({ t }));
  const stop = onChange(["t"], () => (time.root.isConnected ? time.set(selection.t) : stop()));
  time.root.classList.add("runs-time");
  return time.root;
}

/** The page's own layer and head; columns that have not as many take their last. @param {Place[]} places */
function sharedHeads(places) {
  const here = places.filter(({ run }) => run.id === selection.run && run.attention.length);
  const runs = (here.length ? here : places).map((place) => place.run.attention).filter((layers) => layers.length);
  if (!runs.length) return null;
  const layers = Math.max(...runs.map((list) => list.length));
  const heads = Math.max(...runs.flat().map((layer) => layer.heads));
  return [
    choice("Layer", numbers(layers), String(Math.max(0, Math.min(layers - 1, selection.layer))), (text) => select({ layer: Number(text) })),
    choice("Head", [["mean", "average"], ...numbers(heads)], String(selection.head), (text) => select({ head: headNumber(text) })),
  ];
}

/** How the curves are drawn, and on how many samples is measured. @param {Chosen} chosen @param {Choose} choose */
export const axisChoice = ({ axis }, choose) => choice("Along", [["step", "training steps"], ["seconds", "seconds of training"]], axis,
  (text) => choose({ axis: text === "seconds" ? "seconds" : "step" }));

/** @param {Chosen} chosen @param {Choose} choose */
export const countChoice = ({ n }, choose) => choice("Samples", COUNTS.map((one) => [String(one), one.toLocaleString("en")]), String(n), (text) => choose({ n: Number(text) }));
