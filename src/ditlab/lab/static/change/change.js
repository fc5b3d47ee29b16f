// Switch parts off: the same question asked of the network as it was trained and of the changed one, side by side.

import { h, table } from "../draw/dom.js";
import { listed, number } from "../draw/format.js";
import { arrays, at, choices, query } from "../page/api.js";
import { inputName, loadInput } from "../page/inputs.js";
import { panel, snippet } from "../page/panel.js";
import { WHERE, onChange, selection, where } from "../page/state.js";
import { worth } from "./ablations.js";
import { inWords, words } from "./edits.js";
import { Pictures } from "./pictures.js";
import { Samples, apart } from "./samples.js";
import { Switches, settleEdits } from "./switches.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/api.js").Tensor} Tensor */
/** @typedef {{before: Tensor, after: Tensor}} Both */

const PARTS = "Every switch is a part of the network. Switch one off and see what the network then predicts for the same image, and what it draws from the same noise.";
const NO_PARTS = "This network has no heads, blocks or gates. Only the time it is told can be changed.";

/** @param {Run} run @param {string} edits @param {AbortSignal} signal @returns {Promise<Tensor>} the predicted clean image */
async function predicted(run, edits, signal) {
  if (!edits) return (await loadInput(run, signal)).arrays.denoised;
  return (await arrays(at(run.id, `/input${query({ ...where(), edits })}`), { signal })).arrays.denoised;
}

/** In a file: what it holds of changes, where that is not what is chosen; else nothing. */
function missing() {
  const held = choices()?.changes;
  if (!held || !words().length || (held.input.includes(selection.input) && held.t.includes(selection.t))) return "";
  const names = held.input.map((input) => input.replace("data:", "example ").replace("sample:", "generated image "));
  return `This file holds changes for ${listed(names)}, at t = ${listed(held.t.map(String))}: choose one of these above, or start ditlab lab for all.`;
}

/** @param {Run} run */
const changedWords = (run) => words().map((word) => inWords(run, word)).join("; ") || "nothing is changed";

/** The parts of the section, and what they show. */
class Change {
  /** @param {Run} run */
  constructor(run) {
    this.run = run;
    this.images = run.shape.length === 3;
    this.switches = new Switches(run);
    this.pictures = this.images ? new Pictures(run) : null;
    this.samples = new Samples(run);
    this.worth = run.attention.length ? worth(run) : null;
    /** @type {Both | null} */
    this.shown = null;
    this.panel = panel({
      id: "change", title: "Switch parts off", intro: run.attention.length ? PARTS : NO_PARTS, python: () => this.python(), download: () => this.download(),
      picture: () => this.pictures?.together() ?? this.samples.picture(), table: () => this.table(),
      caption: ({ t, input }) => (this.pictures?.row.hidden === false
        ? `t = ${t.toFixed(2)}, ${inputName(input)}; as trained, changed and the difference: ${changedWords(run)}`
        : `samples, above as trained, below changed: ${changedWords(run)}`),
    });
    const held = choices()?.changes;
    const note = held && h("p", { class: "quiet" }, held.edits.length ? "This file holds one change at a time." : "This file holds no changes: start ditlab lab to make some.");
    this.panel.body.append(h("div", { class: run.attention.length ? "change" : "change change-narrow" },
      h("div", { class: "change-parts" }, this.switches.root, note),
      h("div", { class: "change-seen" }, this.pictures?.root, this.samples.root), this.worth?.root));
  }

  /** @param {HTMLElement} root */
  mount(root) {
    settleEdits(this.run);
    root.append(this.panel.root);
    onChange(["edits"], () => this.switches.show());
    onChange([...WHERE, "edits"], () => this.load());
    this.samples.onDrawn(() => this.panel.refresh());
    this.load();
  }

  load() {
    this.panel.ask(async (signal) => {
      const why = missing();
      this.shown = why || !this.pictures ? null : await this.ask(signal);
      if (this.shown) this.pictures?.show(this.shown.before, this.shown.after);
      else this.pictures?.absent(why);
      await this.samples.load(signal);
      this.worth?.start();
    });
  }

  /** @param {AbortSignal} signal @returns {Promise<Both>} */
  async ask(signal) {
    const [before, after] = await Promise.all([predicted(this.run, "", signal), predicted(this.run, selection.edits, signal)]);
    return { before, after };
  }

  python() {
    const edits = selection.edits || undefined;
    const samples = snippet(this.run, "samples", { ...this.samples.asked(), edits }, '["samples"]', false);
    if (!this.images) return samples;
    const lines = snippet(this.run, "input", { edits }, '["denoised"]').trimEnd().split("\n");
    const last = samples.trimEnd().split("\n").pop();
    return [...lines.slice(0, -1), `denoised = ${lines[lines.length - 1]}`, `samples = ${last}`, ""].join("\n");
  }

  download() {
    const drawn = this.samples.both;
    const pictures = this.shown ? { denoised_as_trained: this.shown.before, denoised: this.shown.after } : null;
    const samples = drawn ? { samples_as_trained: drawn.before, samples: drawn.after } : null;
    return pictures || samples ? { name: `${this.run.name}-changed`, arrays: { ...pictures, ...samples } } : null;
  }

  table() {
    const changed = changedWords(this.run);
    const one = this.shown ? [["predicted x₀", number(apart(this.shown.before, this.shown.after))]] : [];
    const many = this.samples.distances().map((value, i) => [`sample ${i}`, number(value)]);
    return table(`Mean |changed − as trained|: ${changed}.`, ["", "how far apart"], [...one, ...many]);
  }
}

/** @param {HTMLElement} root @param {Run} run */
export const mount = (root, run) => new Change(run).mount(root);
