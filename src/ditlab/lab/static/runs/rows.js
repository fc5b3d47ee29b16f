// Rows of the comparison, each across all columns: what differs, samples, attention and gates.

import { pairedBars } from "../draw/bars.js";
import { clear, h } from "../draw/dom.js";
import { number } from "../draw/format.js";
import { nearest } from "../draw/math.js";
import { arrays, at, isAbort, json, query } from "../page/api.js";
import { Recording } from "../page/recording.js";
import { weightsOf } from "./columns.js";
import { chip } from "./controls.js";

/** @typedef {import("./columns.js").Place} Place */
/** @typedef {import("../draw/bars.js").Bar} Bar */
/** @typedef {Record<string, any>} Settings */

/** A title, a sentence, and a cell for each column. */
export class Row {
  /** @param {string} title */
  constructor(title) {
    this.cells = h("div", { class: "runs-cells" });
    this.note = h("p", { class: "quiet" });
    this.foot = h("div");
    this.root = h("div", { class: "runs-row" }, h("h3", null, title), this.note, this.cells, this.foot);
  }

  /** What cannot be shown says why in its cell. @param {Place[]} places @param {(place: Place) => Promise<import("../draw/dom.js").Child>} make */
  async fill(places, make) {
    const made = await Promise.all(places.map(async (place) => {
      try {
        return await make(place);
      } catch (error) {
        if (isAbort(error)) throw error;
        return h("p", { class: "quiet" }, error instanceof Error ? error.message : String(error));
      }
    }));
    clear(this.cells).append(...places.map((place, i) => h("div", { class: "runs-cell" }, h("div", { class: "runs-cell-head" }, chip(place.letter, place.index), h("span", null, place.run.name)), made[i])));
  }
}

// --- what differs ------------------------------------------------------------------------------------------------------

/** What decides nothing of a trained network. */
const HOUSEKEEPING = new Set(["averages", "average_every", "device", "workers", "spike_factor", "bad_steps", "stall_after", "keep_last", "keep_every",
  "log_every", "checkpoint_every", "preview_every", "record_every", "track", "compile", "recompute", "parallel"]);
/** Of data: how they are kept and read. */
const READING = new Set(["data.flip", "data.cache", "data.bad_share"]);
const ABOVE = new Set(["data", "network", "network.conditioning", "process", "steps"]);

/** What a run was trained on, as a text that is the same for the same data. @param {Settings} settings @param {Place} place */
const dataOf = (settings, { run }) => JSON.stringify([run.shape, ...Object.entries(settings).filter(([name]) => /^data(\.|$)/.test(name) && !READING.has(name))]);

/** @param {unknown} value */
const said = (value) => (value === undefined || value === null ? "–" : Array.isArray(value) ? value.join(", ") : String(value));

const NETWORKS = { dit: "DiT", unet: "U-Net", mlp: "MLP", own: "registered" };

export class Facts {
  constructor() {
    this.root = h("div", { class: "runs-row" });
    /** What each run was trained on. @type {Map<string, string>} */
    this.data = new Map();
    /** @type {{name: string, values: string[]}[]} */
    this.lines = [];
  }

  /** @param {Place[]} places @param {AbortSignal} signal */
  async show(places, signal) {
    /** @type {(Settings | string)[]} settings, or why they cannot be read */
    const asked = await Promise.all(places.map(({ run }) => json(at(run.id, "/config"), { signal }).catch((error) => {
      if (isAbort(error)) throw error;
      return error instanceof Error ? error.message : String(error);
    })));
    /** @type {Settings[]} */
    const all = asked.map((one) => (typeof one === "string" ? {} : one));
    const read = places.filter((_, i) => typeof asked[i] !== "string");
    this.data = new Map(read.map((place) => [place.run.id, dataOf(all[places.indexOf(place)], place)]));
    const of = (/** @type {string} */ name) => all.map((settings) => said(settings[name]));
    const other = [...new Set(all.flatMap(Object.keys))].filter((name) => !ABOVE.has(name) && !HOUSEKEEPING.has(name) && new Set(of(name).filter((_, i) => typeof asked[i] !== "string")).size > 1);
    this.lines = [
      { name: "Network", values: places.map(({ run }) => NETWORKS[run.network]) },
      { name: "Conditioning", values: of("network.conditioning") },
      { name: "Data", values: places.map(({ run }, i) => `${all[i]["data.name"] ?? run.data}, ${run.shape.join(" × ")}`) },
      { name: "Process", values: places.map(({ run }) => `${run.process}, predicts ${run.target}`) },
      { name: "Parameters", values: places.map(({ run }) => run.parameters.toLocaleString("en")) },
      { name: "Checkpoint", values: places.map(({ step }, i) => `step ${step.toLocaleString("en")}${all[i].steps ? ` of ${Number(all[i].steps).toLocaleString("en")}` : ""}`) },
      ...(read.length < places.length ? [{ name: "Settings", values: asked.map((one) => (typeof one === "string" ? one : "read")) }] : []),
    ];
    clear(this.root).append(scrolled("The compared runs", factsTable("What differs is marked ≠.", places, this.lines)), more(places, other.map((name) => ({ name, values: of(name) }))));
  }
}

/** @param {string} label @param {HTMLElement} content */
const scrolled = (label, content) => h("div", { class: "scroll runs-facts", tabindex: 0, role: "region", "aria-label": label }, content);

/** @param {Place[]} places @param {{name: string, values: string[]}[]} lines */
function more(places, lines) {
  if (!lines.length) return h("p", { class: "quiet runs-more" }, "All other settings are the same.");
  return h("details", { class: "runs-more" }, h("summary", null, lines.length === 1 ? "1 more setting differs" : `${lines.length} more settings differ`),
    scrolled("Other settings that differ", factsTable("Named as in config.json; with -- in front they are options of ditlab train.", places, lines)));
}

/** @param {string} caption @param {Place[]} places @param {{name: string, values: string[]}[]} lines */
function factsTable(caption, places, lines) {
  const head = h("tr", null, h("td"), places.map((place) => h("th", { scope: "col" }, chip(place.letter, place.index), ` ${place.run.name}`)));
  const rows = lines.map(({ name, values }) => {
    const differs = new Set(values).size > 1;
    return h("tr", { class: differs ? "runs-differs" : null }, h("th", { scope: "row" }, name, differs && " ≠"), values.map((value) => h("td", null, value)));
  });
  return h("table", null, h("caption", null, caption), h("thead", null, head), h("tbody", null, rows));
}

// --- gates -------------------------------------------------------------------------------------------------------------

/** @typedef {{step: number, pairs: [Bar, Bar][], mean: number}} Gate */

/** |gate| of each block at the recording nearest to the checkpoint: means over t, with their spread. @param {Place} place @param {AbortSignal} signal @returns {Promise<Gate>} */
async function gateOf(place, signal) {
  const recording = new Recording(await arrays(at(place.run.id, `/gates${query(weightsOf(place))}`), { signal }));
  const index = nearest(recording.steps, place.step);
  return { step: recording.steps[index], pairs: recording.pairs(index), mean: recording.mean(index) };
}

export class Gates extends Row {
  constructor() {
    super("Gates");
    /** @type {Map<string, Gate>} by letter */
    this.found = new Map();
  }

  /** @param {Place[]} places @param {AbortSignal} signal */
  async show(places, signal) {
    this.found = new Map();
    await this.fill(places, async (place) => {
      const why = place.run.sections.gates;
      if (why) throw new Error(why);
      this.found.set(place.letter, await gateOf(place, signal));
    });
    const gates = [...this.found.values()];
    this.note.textContent = gates.length ? "mean |gate| of every block, all on one scale; whiskers: the spread over t." : "";
    if (!gates.length) return;
    const top = 1.04 * Math.max(...gates.flatMap(({ pairs }) => pairs.flat().map((bar) => bar.high))) || 1;
    places.forEach((place, i) => {
      const gate = this.found.get(place.letter);
      if (gate) this.cells.children[i].append(barsOf(place, gate, top));
    });
  }
}

/** @param {Place} place @param {Gate} gate @param {number} top */
function barsOf({ letter }, { step, pairs, mean }, top) {
  const bars = pairedBars({ title: `mean |gate| of every block of ${letter}`, description: "Bars: mean over channels, samples and t. Whiskers: its spread over t. Arrow keys walk from block to block.", pairs, names: ["attention", "MLP"], top });
  return h("div", null, bars.svg, h("p", { class: "quiet" }, `${number(mean)} over all branches, recorded at step ${step.toLocaleString("en")}`));
}
