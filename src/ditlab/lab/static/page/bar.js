// The bar: one place for the choices that all sections share.

import { h } from "../draw/dom.js";
import { slider } from "../draw/player.js";
import { choices } from "./api.js";
import { classChoices, scalarFields } from "./conditions.js";
import { inputName } from "./inputs.js";
import { onNews } from "./live.js";
import { listDamaged, onRuns } from "./run_list.js";
import { onChange, select, selection } from "./state.js";

/** @typedef {import("./api.js").Run} Run */
/** @typedef {import("./api.js").RunSummary} RunSummary */
/** @typedef {import("./state.js").Selection} Selection */

/**
 * A labelled list bound to one key of the selection.
 * @param {string} id
 * @param {string} label
 * @param {[string, string][]} options [value, text]
 * @param {() => string} read
 * @param {(value: string) => Partial<Selection>} write
 * @param {import("./state.js").Key} key
 * @param {string} [title] what the words mean
 */
function choice(id, label, options, read, write, key, title) {
  const list = h("select", {
    id, value: read(), onchange: () => select(write(list.value)),
  }, options.map(([value, text]) => h("option", { value }, text)));
  onChange([key], () => {
    list.value = read();
  });
  return h("div", { class: "field", title }, h("label", { for: id }, label), list);
}

/** All runs, as they come and go; those that cannot be opened cannot be chosen, and say why. @param {Run} run @param {RunSummary[]} runs */
function runChoice(run, runs) {
  /** The run that is shown stays in the list if it was moved away. @param {RunSummary[]} all @returns {[string, string][]} */
  const options = (all) => [...all.map(({ id, name }) => /** @type {[string, string]} */ ([id, name])), ...(all.some(({ id }) => id === run.id) ? [] : [/** @type {[string, string]} */ ([run.id, `${run.name}, gone`])])];
  const field = choice("choose-run", "Run", options(runs), () => selection.run, (value) => ({ run: value }), "run");
  const list = /** @type {HTMLSelectElement} */ (field.querySelector("select"));
  const fill = async (/** @type {RunSummary[]} */ all) => {
    const damaged = await listDamaged();
    list.replaceChildren(...options(all).map(([value, text]) => h("option", { value }, text)),
      ...damaged.map(({ name, why }) => h("option", { disabled: true, title: why }, `${name} (cannot be opened: ${why})`)));
    list.value = selection.run;
  };
  void fill(runs);
  onRuns((all) => void fill(all));
  return field;
}

/** The checkpoints of a run, and the one that is shown, which training may have removed since. @param {Run} run @param {number | null} shown @returns {[string, string][]} */
export function stepOptions({ checkpoints }, shown) {
  const gone = shown !== null && !checkpoints.includes(shown);
  return [...checkpoints, ...(gone ? [shown] : [])].sort((a, b) => a - b)
    .map((step) => [String(step), `step ${step.toLocaleString("en")}${gone && step === shown ? ", gone from disk" : ""}`]);
}

/** @param {Run} run */
function stepChoice(run) {
  const options = () => stepOptions(run, selection.step);
  const field = choice("choose-step", "Checkpoint", options(), () => String(selection.step), (value) => ({ step: Number(value) }), "step");
  const list = /** @type {HTMLSelectElement} */ (field.querySelector("select"));
  const refill = () => {
    list.replaceChildren(...options().map(([value, text]) => h("option", { value }, text)));
    list.value = String(selection.step);
  };
  onNews((news) => news.checkpoints && refill());
  onChange(["step"], refill); // One that is gone is not offered again.
  return field;
}

const weightsChoice = () => !choices() && choice("choose-weights", "Weights", [["ema", "averaged (EMA)"], ["raw", "raw"]], () => selection.weights,
  (value) => ({ weights: value }), "weights",
  "Averaged: a running mean (EMA) of the weights, kept while training. It usually draws better than the raw ones.");

/** @param {Run} run */
function labelChoice(run) {
  if (run.num_classes === null || choices()) return null;
  return choice("choose-label", "Label", [["", "its own"], ["-1", "none"], ...classChoices(run)], () => (selection.label === null ? "" : String(selection.label)),
    (value) => ({ label: value === "" ? null : Number(value) }), "label",
    "The label the network is told. None: its null label, which stands for no label.");
}

/** @param {Run} run */
function scalarChoice(run) {
  if (choices() || !run.scalars.length) return null;
  const root = h("div", { class: "choices-part" });
  const show = () => root.replaceChildren(...scalarFields(run, selection.cond, "field", "its own", (cond) => select({ cond })));
  onChange(["cond"], show);
  show();
  return root;
}

/** The image: by kind and number, or from the list an exported file holds. */
function inputChoice() {
  const held = choices()?.input;
  if (held) return choice("choose-input", "Image", held.map((input) => [input, inputName(input)]), () => selection.input, (value) => ({ input: value }), "input");
  const kind = h("select", { id: "choose-input" });
  const number = h("input", { type: "number", min: 0, step: 1, "aria-label": "Number of the example, or seed", class: "short" });
  const show = () => {
    const [name, rest] = selection.input.split(":");
    const own = !["data", "sample"].includes(name);
    kind.replaceChildren(...["data", "sample", ...(own ? [name] : [])].map((value) => h("option", { value }, { data: "example", sample: "generated" }[value] ?? inputName(`${value}:`))));
    kind.value = name;
    number.hidden = own;
    if (!own && number.value !== rest) number.value = rest;
  };
  const change = () => {
    if (kind.value !== "data" && kind.value !== "sample") return;
    const value = Math.max(0, Math.trunc(number.valueAsNumber) || 0);
    select({ input: `${kind.value}:${value}` });
  };
  kind.addEventListener("change", change);
  number.addEventListener("input", () => number.value !== "" && change());
  onChange(["input"], show);
  show();
  return h("div", { class: "field" }, h("label", { for: "choose-input" }, "Image"), h("div", { class: "pair" }, kind, number));
}

function timeChoice() {
  const held = choices()?.t;
  const range = held?.length ? { values: held } : { min: 0, max: 1, step: 0.01 };
  const time = slider({ label: "Time t", value: selection.t, format: (t) => t.toFixed(2), play: true, ...range }, (t) => select({ t }));
  time.root.classList.add("field-time");
  onChange(["t"], () => time.set(selection.t));
  return time.root;
}

/** @param {Run} run */
function layerChoice(run) {
  if (!run.attention.length) return null;
  return choice("choose-layer", "Layer", run.attention.map((_, i) => [String(i), String(i)]), () => String(selection.layer), (value) => ({ layer: Number(value) }), "layer");
}

/** @param {Run} run */
function headChoice(run) {
  if (!run.attention.length) return null;
  const heads = Math.max(...run.attention.map((layer) => layer.heads));
  /** @type {[string, string][]} */
  const options = Array.from({ length: heads }, (_, i) => [String(i), String(i)]);
  return choice("choose-head", "Head", [["mean", "average"], ...options], () => String(selection.head), (value) => ({ head: value === "mean" ? "mean" : Number(value) }), "head");
}

/** @param {Run} run @param {RunSummary[]} runs @param {HTMLElement} badge @returns {HTMLElement} */
export function bar(run, runs, badge) {
  const images = run.data !== "points";
  const region = { class: "choices", role: "region", "aria-label": "What is shown" };
  if (run.step === null) return h("div", region, badge, h("div", { class: "choices-part" }, runChoice(run, runs)));
  return h("div", region, badge,
    h("div", { class: "choices-part" }, runChoice(run, runs), stepChoice(run), weightsChoice(), images && inputChoice(), labelChoice(run)),
    scalarChoice(run),
    // Points have no image to look at: Denoise has its own time.
    images && h("div", { class: "choices-part choices-live" }, timeChoice(), layerChoice(run), headChoice(run)));
}
