/** The last section, Compare: two to four columns side by side, each a run at a checkpoint, a time, a head and a seed. */
import { h, keepFocus, table } from "../draw/dom.js";
import { at, exported, floats, forget, isAbort, isPixels, json, latest } from "../page/api.js";
import { inputName } from "../page/inputs.js";
import { onNews } from "../page/live.js";
import { drawnPython, literal, panel } from "../page/panel.js";
import { listRuns, onRuns } from "../page/run_list.js";
import { staleness } from "../page/stale.js";
import { onChange, select, selection } from "../page/state.js";
import { Attention } from "./attention.js";
import { nameOf, placed, read, write } from "./columns.js";
import { columnControls, sharedControls } from "./controls.js";
import { Loss, Quality, figureText } from "./curves.js";
import { Facts, Gates } from "./rows.js";
import { Samples, drawing } from "./samples.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/api.js").RunSummary} RunSummary */
/** @typedef {import("../page/api.js").Tensor} Tensor */
/** @typedef {import("./columns.js").Chosen} Chosen */
/** @typedef {import("./columns.js").Place} Place */

const INTRO = "Runs side by side: how they learned, how well they draw, and what they do with the same noise and the same image.";
const ALONE = exported ? " This file holds one run: compare it with itself, at other times, heads or seeds. For several runs, start "
  : " There is one run here: compare it with itself, at other checkpoints, times, heads or seeds. For several runs, start ";

/** @param {RunSummary[]} runs */
const intro = (runs) => h("p", null, INTRO, runs.length > 1 ? "" : [ALONE, h("code", null, "ditlab lab runs"), "."]);

class Compare {
  /** @param {Run} run @param {RunSummary[]} runs */
  constructor(run, runs) {
    this.run = run;
    this.runs = runs;
    this.chosen = read(run, runs);
    /** @type {Place[]} */
    this.places = [];
    this.nextLoss = latest();
    /** What each row shows. @type {Map<string, string>} */
    this.shown = new Map();
    this.columns = h("div", { class: "runs-columns" });
    this.shared = h("div");
    const choose = (/** @type {Partial<Chosen>} */ change) => this.choose(change);
    this.facts = new Facts();
    this.loss = new Loss(choose);
    this.panel = panel({
      id: "compare", title: "Compare", intro: intro(runs), patient: true, rows: true,
      python: () => this.python(), download: () => this.download(), picture: () => this.picture(), table: () => this.table(),
      caption: ({ input }) => this.caption(input),
    });
    this.quality = new Quality((error) => this.panel.fail(error, false), choose, this.loss, () => this.panel.refresh());
    this.samples = new Samples();
    this.attention = new Attention();
    this.gates = new Gates();
    const rows = { facts: this.facts, loss: this.loss, quality: this.quality, samples: this.samples, attention: this.attention, gates: this.gates };
    /** @type {Map<string, import("../page/stale.js").Stale>} */
    this.stale = new Map(Object.entries(rows).map(([name, row]) => [name, staleness(row.root)]));
    this.panel.body.append(h("div", { class: "runs-controls" }, this.columns, this.shared), ...Object.values(rows).map((row) => row.root));
  }

  /** @param {Partial<Chosen>} change */
  choose(change) {
    select(write({ ...this.chosen, ...change }));
  }

  settle() {
    for (const row of this.stale.values()) row.begin();
    this.panel.ask(async (signal) => {
      this.chosen = read(this.run, this.runs);
      const { columns } = this.chosen;
      const found = await Promise.all(columns.map(({ run }) => about(run, signal)));
      const all = columns.map((column, i) => (typeof found[i] === "string" ? found[i] : placed(column, /** @type {Run} */ (found[i]), i, this.chosen)));
      const places = /** @type {Place[]} */ (all.filter((one) => typeof one !== "string"));
      await this.row("controls", [selection.c, selection.cs, selection.step, selection.layer, selection.head, all.map((one) => (typeof one === "string" ? one : one.run.checkpoints))], async () => {
        keepFocus(this.panel.body.querySelector(".runs-controls") ?? this.columns, () => this.drawControls(all));
      });
      await this.rows(places, signal);
      this.places = places;
    });
  }

  /** One after the other: the lab answers one question at a time. @param {Place[]} places @param {AbortSignal} signal */
  async rows(places, signal) {
    const { axis, n } = this.chosen;
    const { weights, input } = selection;
    const each = (/** @type {(place: Place) => unknown} */ of) => places.map((place) => [place.letter, place.run.id, place.step, of(place)]);
    const again = () => {
      this.shown.delete("samples");
      this.settle();
    };
    /** @type {[string, unknown, () => Promise<void>][]} */
    const rows = [
      ["facts", each(() => null), () => this.facts.show(places, signal)],
      ["loss", [each(() => null), axis], () => this.loss.show(places, this.chosen, signal)],
      ["quality", [each(() => null), axis, n, weights], async () => this.quality.show(places, this.chosen, this.facts.data)],
      ["samples", [each(drawing), weights], () => this.samples.show(places, signal, again)],
      ["attention", [each(({ t, layer, head, label }) => [t, layer?.layer, head, label]), weights, input], () => this.attention.show(places, signal)],
      ["gates", each(() => null), () => this.gates.show(places, signal)],
    ];
    for (const [name, what] of rows) if (this.shown.get(name) === JSON.stringify(what)) this.stale.get(name)?.end();
    for (const [name, what, draw] of rows) {
      await this.row(name, what, draw);
      this.stale.get(name)?.end();
    }
  }

  /** Draw a row, unless it shows this already. @param {string} name @param {unknown} what @param {() => Promise<void>} draw */
  async row(name, what, draw) {
    const key = JSON.stringify(what);
    if (this.shown.get(name) === key) return;
    this.shown.delete(name);
    await draw();
    this.shown.set(name, key);
  }

  /** Its loss has grown: drawn anew, while what the other rows wait for goes on. */
  grow() {
    return this.panel.attempt(() => this.loss.show(this.places, this.chosen, this.nextLoss()));
  }

  /** @param {(Place | string)[]} all */
  drawControls(all) {
    const choose = (/** @type {Partial<Chosen>} */ change) => this.choose(change);
    this.columns.replaceChildren(...all.map((place, i) => columnControls(this.chosen, i, place, this.runs, choose)));
    this.shared.replaceChildren(sharedControls(this.chosen, all, this.runs, choose));
  }

  /** Samples above, maps below; without either, the loss. */
  picture() {
    return together([this.samples.canvases, this.attention.canvases]) ?? /** @type {SVGSVGElement | null} */ (this.loss.root.querySelector("svg"));
  }

  /** The columns of the picture, from left to right. @param {string} input */
  caption(input) {
    const columns = this.places.map((place) => {
      const { letter, step, seed, t, layer, head } = place;
      const map = this.attention.found.has(letter) && layer && `layer ${place.run.attention.indexOf(layer)}, ${head === "mean" ? "average of heads" : `head ${head}`}, t = ${t.toFixed(2)}`;
      return [nameOf(place), `step ${step?.toLocaleString("en")}`, this.samples.canvases.length > 0 && `seed ${seed}`, map].filter(Boolean).join(", ");
    });
    return [...columns, this.attention.found.size && `attention to ${inputName(input)}`].filter(Boolean).join("; ");
  }

  python() {
    const lines = ["from ditlab.lab import Lens", "from ditlab.lab.lens.comparing import quality", "from ditlab.lab.lens.recordings import losses"];
    for (const { letter, run, step } of this.places) lines.push(`${letter.toLowerCase()} = Lens(${literal(run.path)}, step=${step}, weights=${literal(selection.weights)})`);
    const call = (/** @type {Record<string, unknown>} */ args) => Object.entries(args).filter(([, value]) => value !== null).map(([name, value]) => `${name}=${literal(value)}`).join(", ");
    for (const place of this.places) lines.push(`${place.letter.toLowerCase()}_samples = ${place.letter.toLowerCase()}.samples(${call(drawing(place))})["samples"]`);
    lines.push(...this.pythonMaps(call), ...this.places.map(({ letter }) => `quality(${letter.toLowerCase()}.run, n=${this.chosen.n})`), `losses(${this.places[0]?.letter.toLowerCase()}.run.folder)["loss"].numpy()`, "");
    return lines.join("\n");
  }

  /** @param {(args: Record<string, unknown>) => string} call @returns {string[]} */
  pythonMaps(call) {
    const maps = this.places.filter(({ letter }) => this.attention.found.has(letter));
    const shown = (/** @type {Place} */ { letter }) => this.attention.found.get(letter)?.shown ?? { input: "", label: null, source: "" };
    const handed = maps.find((place) => isPixels(shown(place).input));
    /** @type {string[]} */
    const lines = [];
    if (handed) {
      const { source } = shown(handed);
      const first = handed.letter.toLowerCase();
      lines.push(...(isPixels(source) ? drawnPython(source, handed.run.shape) : ["import numpy as np",
        `x0 = ${first}.input(${call({ input: source, t: handed.t })})["x0"].astype(float)`, "pixels = np.floor(np.clip((x0 + 1) * 127.5, 0, 255) + 0.5).astype(np.uint8)"]));
    }
    for (const place of maps) {
      const name = place.letter.toLowerCase();
      const { input, label } = shown(place);
      const image = isPixels(input) ? `${name}.own(pixels)` : literal(input);
      lines.push(`${name}_map = ${name}.attention(input=${image}, ${call({ t: place.t, label, layer: place.layer?.layer, head: place.head })})["map"]`);
    }
    return lines;
  }

  download() {
    if (!this.places.length) return null;
    /** @type {Record<string, Tensor>} */
    const found = {};
    for (const { letter, run } of this.places) {
      const name = letter.toLowerCase();
      const [samples, attention, curve] = [this.samples.found.get(letter), this.attention.found.get(letter), this.loss.curves.get(run.id)];
      if (samples) found[`${name}_samples`] = samples;
      if (attention) found[`${name}_map`] = { shape: [attention.size, attention.size], data: attention.map };
      for (const [key, data] of Object.entries(curve ?? {})) found[`${name}_${key}`] = { shape: [data.length], data };
    }
    return { name: "compare", arrays: found };
  }

  table() {
    const { places } = this;
    if (!places.length) return null;
    const last = (/** @type {Place} */ { run }) => {
      const loss = this.loss.curves.get(run.id)?.loss;
      return loss ? floats({ shape: [loss.length], data: loss })[loss.length - 1].toFixed(4) : "–";
    };
    const map = (/** @type {Place} */ { letter }) => this.attention.found.get(letter);
    const rows = [
      ...this.facts.lines.map(({ name, values }) => [name, ...values]),
      ["Last loss", ...places.map(last)],
      [`Quality, of ${this.chosen.n} samples`, ...places.map((place) => figureText(this.quality.of(place), place))],
      ["Seed of the samples", ...places.map(({ seed }) => String(seed))],
      ["Attention at", ...places.map((place) => (map(place) ? `layer ${place.layer?.layer}, ${place.head === "mean" ? "average of heads" : `head ${place.head}`}, t = ${place.t.toFixed(2)}` : "–"))],
      ["Entropy of attention, bits", ...places.map((place) => map(place)?.entropy.toFixed(3) ?? "–")],
      ["Mean distance of attention, patches", ...places.map((place) => map(place)?.distance.toFixed(3) ?? "–")],
      ["mean |gate|", ...places.map(({ letter }) => this.gates.found.get(letter)?.mean.toFixed(4) ?? "–")],
    ];
    return table("The compared runs in numbers", ["", ...places.map(nameOf)], rows);
  }

  /** @param {HTMLElement} root */
  mount(root) {
    root.append(this.panel.root);
    this.settle();
    onChange(["c", "cs", "t", "input", "layer", "head", "step", "weights"], () => this.settle());
    onNews((news) => {
      if (news.losses || news.cut) {
        forget(at(this.run.id, "/losses"));
        this.shown.delete("loss");
        if (!this.panel.near()) this.settle();
        else if (this.places.length) void this.grow();
      }
      if (news.checkpoints) this.settle();
    });
    onRuns((runs) => {
      this.runs = comparable(runs, this.run);
      this.shown.delete("controls");
      this.settle();
    });
  }
}

/** Before its first checkpoint a run has no network to compare; this one has, whenever the list was made. @param {RunSummary[]} runs @param {Run} here */
const comparable = (runs, here) => runs.filter(({ id, step }) => step !== null || id === here.id);

/** All about a run, or why it cannot be opened. @param {string} run @param {AbortSignal} signal @returns {Promise<Run | string>} */
async function about(run, signal) {
  try {
    return await json(at(run, ""), { signal });
  } catch (error) {
    if (isAbort(error)) throw error;
    return error instanceof Error ? error.message : String(error);
  }
}

/** Rows of canvases as one. @param {HTMLCanvasElement[][]} rows */
function together(rows) {
  const filled = rows.filter((row) => row.length);
  if (!filled.length) return null;
  const [side, gap] = [480, 24];
  const tall = (/** @type {HTMLCanvasElement[]} */ row) => Math.max(...row.map((canvas) => (side * canvas.height) / canvas.width));
  const whole = h("canvas", { width: Math.max(...filled.map((row) => row.length * (side + gap) - gap)), height: filled.reduce((sum, row) => sum + tall(row) + gap, -gap) });
  const context = whole.getContext("2d");
  if (context) context.imageSmoothingEnabled = false;
  let y = 0;
  for (const row of filled) {
    row.forEach((canvas, i) => context?.drawImage(canvas, i * (side + gap), y, side, (side * canvas.height) / canvas.width));
    y += tall(row) + gap;
  }
  return whole;
}

/** @param {HTMLElement} root @param {Run} run */
export function mount(root, run) {
  // Its place in the page is kept while the list of runs is on its way.
  const place = h("div");
  root.append(place);
  void listRuns().then((all) => {
    if (!place.isConnected) return;
    const section = new Compare(run, comparable(all, run));
    section.mount(place);
    place.replaceWith(section.panel.root);
  });
}
