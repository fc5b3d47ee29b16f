// What each part is worth: how much the loss rises without it, ranked; a click on a row switches that part off.

import { clear, h } from "../draw/dom.js";
import { number } from "../draw/format.js";
import { arrays, at, exported, floats, isAbort, query } from "../page/api.js";
import { patient } from "../page/patient.js";
import { onChange, whichWeights } from "../page/state.js";
import { has, part, read, toggle } from "./edits.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {{word: string, cost: number, error: number}} Row */
/** @typedef {{rows: Row[], images: number, generated: boolean, loss: number}} Costs */

/** @type {Record<string, string>} */
const KINDS = { head: "Heads", gate: "Branches", block: "Blocks" };
const COMING = "Measured when you scroll here.";
const LARGE = "This network is large: measuring takes a while.";
const MEASURING = "Measuring: one part after the other is switched off…";

/** Multiply-accumulates that the lab does in some seconds: what takes it longer waits for a word. */
const AT_ONCE = 3e11;

/** Is the least that the lab measures on, four images at five times, more than that? @param {Run} run */
const isCostly = ({ attention, macs }) => exported === false && 20 * (macs ?? 0) * attention.reduce((sum, { heads }) => sum + heads + 3, 1) > AT_ONCE;

/** @param {import("../page/api.js").Arrays} answer @returns {Costs} */
function ranked({ arrays: found, meta }) {
  const [cost, error] = [floats(found.cost), floats(found.error)];
  const rows = meta.edits.split(" ").map((word, i) => ({ word, cost: cost[i], error: error[i] }));
  return { rows, images: Number(meta.images), generated: meta.source === "generated", loss: floats(found.loss)[0] };
}

/** A rise and its standard error, to two digits of the error. @param {Row} row */
function rise({ cost, error }) {
  const decimals = Math.min(8, Math.max(0, 1 - Math.floor(Math.log10(error || 1e-8))));
  return `${cost < 0 ? "−" : "+"}${Math.abs(cost).toFixed(decimals)} ± ${error.toFixed(decimals)}`;
}

/** A part, what it is worth as a bar and as a number; a click switches it off. @param {Run} run @param {Row} row @param {number} most of all rows */
function lineOf(run, row, most) {
  const { word, cost } = row;
  return h("li", null, h("button", { type: "button", class: `worth-row worth-${read(word).kind}`, "aria-pressed": has(word), dataset: { word }, onclick: () => toggle(run, word) },
    h("span", { class: "worth-name" }, part(run, word)),
    h("span", { class: "worth-bar", "aria-hidden": "true" }, h("span", { class: cost < 0 ? "worth-less" : "", style: { inlineSize: `${(100 * Math.abs(cost)) / most}%` } })),
    h("span", { class: "worth-number" }, rise(row))));
}

/** @param {string} name of a kind @param {boolean} checked @param {() => void} onchange */
const segment = (name, checked, onchange) => h("div", { class: "segment" },
  h("input", { type: "radio", name: "worth-kind", id: `worth-${name}`, checked, onchange }), h("label", { for: `worth-${name}` }, KINDS[name]));

/** @param {Run} run @returns {{root: HTMLElement, start: () => void}} */
export function worth(run) {
  const sentence = h("p", { class: "quiet", "aria-live": "polite" }, COMING);
  const list = h("ol", { class: "worth-list" });
  const kinds = h("fieldset", { class: "worth-kinds", hidden: true });
  const begin = h("button", { type: "button", class: "tool", hidden: !isCostly(run), onclick: () => {
    begin.hidden = true;
    measuring.now();
  } }, "Measure it");
  const root = h("div", { class: "worth" }, h("h3", null, "What each part is worth"), sentence, begin, kinds,
    h("div", { class: "scroll worth-scroll", tabindex: 0, role: "region", "aria-label": "What each part is worth", hidden: true }, list));
  /** @type {Costs | null} */
  let costs = null;
  let kind = "head";

  const draw = () => {
    const rows = costs?.rows.filter(({ word }) => read(word).kind === kind) ?? [];
    const most = Math.max(...rows.map(({ cost }) => Math.abs(cost)), 1e-12);
    clear(list).append(...rows.map((row) => lineOf(run, row, most)));
  };
  const offer = () => {
    const there = Object.keys(KINDS).filter((name) => costs?.rows.some(({ word }) => read(word).kind === name));
    if (!there.includes(kind)) kind = there[0];
    clear(kinds).append(h("legend", { class: "read-out-only" }, "Which parts"), h("div", { class: "segments" }, there.map((name) => segment(name, name === kind, () => {
      kind = name;
      draw();
    }))));
  };
  const show = (/** @type {boolean} */ there) => [kinds, list.parentElement].forEach((node) => node && (node.hidden = !there));
  const load = async (/** @type {AbortSignal} */ signal) => {
    sentence.textContent = MEASURING;
    try {
      costs = ranked(await arrays(at(run.id, `/costs${query(whichWeights())}`), { signal }));
    } catch (error) {
      if (!isAbort(error)) sentence.textContent = error instanceof Error ? error.message : String(error);
      throw error;
    }
    sentence.textContent = `How much the loss, ${number(costs.loss)}, rises without each part; ± is one standard error over ${costs.images} ${costs.generated ? "generated" : "training"} images at five times.`;
    offer();
    draw();
    show(true);
  };
  onChange(["step", "weights"], () => {
    costs = null;
    begin.hidden = !isCostly(run);
    sentence.textContent = isCostly(run) ? LARGE : measuring.near() ? MEASURING : COMING;
    show(false);
    if (isCostly(run)) measuring.stop();
    else measuring.again();
  });
  const measuring = patient(sentence, load);
  onChange(["edits"], () => {
    const focused = /** @type {HTMLElement | null} */ (document.activeElement)?.dataset.word;
    draw();
    if (focused) /** @type {HTMLElement | null} */ (list.querySelector(`[data-word="${focused}"]`))?.focus();
  });
  if (!begin.hidden) sentence.textContent = LARGE;
  return { root, start: () => { if (begin.hidden) measuring.start(); }};
}
