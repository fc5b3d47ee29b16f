// Curves of the compared runs: the loss that training wrote down, and the figures of their checkpoints.

import { lineChart, redraw } from "../draw/chart.js";
import { clear, h } from "../draw/dom.js";
import { number } from "../draw/format.js";
import { nearest } from "../draw/math.js";
import { arrays, at, exported, floats, isAbort, json, query } from "../page/api.js";
import { asChosen, curveControls } from "../page/curve_controls.js";
import { living } from "../page/lifetime.js";
import { selection } from "../page/state.js";
import { grouped, lettersOf, nameOf } from "./columns.js";
import { axisChoice, countChoice } from "./controls.js";

/** @typedef {import("./columns.js").Chosen} Chosen */
/** @typedef {import("./columns.js").Place} Place */
/** @typedef {import("../draw/chart.js").Series} Series */
/** @typedef {{step: Float32Array, seconds: Float32Array, loss: Float32Array}} Curve */
/** @typedef {Record<string, any>} Figures */
/** @typedef {{figure: string, words: string, level: string | null, levelWords: string}} Figure */

const MOST_CHECKPOINTS = 8;

/** The figure that tells most of each kind of data, and the level that real data reach. @type {Record<string, Figure>} */
const FIGURES = {
  circles: { figure: "valid", words: "share of valid circles", level: null, levelWords: "" },
  digits: { figure: "accuracy", words: "share that is the digit asked for", level: "accuracy_real", levelWords: "real digits" },
  points: { figure: "energy_distance", words: "energy distance to the data", level: "energy_distance_floor", levelWords: "fresh data" },
  images: { figure: "sliced_wasserstein", words: "sliced Wasserstein distance to the data", level: "sliced_wasserstein_floor", levelWords: "fresh data" },
  latents: { figure: "sliced_wasserstein", words: "sliced Wasserstein distance to the data", level: "sliced_wasserstein_floor", levelWords: "fresh data" },
};

/** @param {Place} place @returns {Figure} */
export const figureOf = ({ run }) => FIGURES[run.data] ?? FIGURES.images;

/** A chart, and the values under the pointer in words. @param {import("../draw/chart.js").ChartOptions} options */
function read(options) {
  const line = h("p", { class: "runs-reading", "aria-hidden": "true" }, "\u00a0");
  const svg = lineChart(options);
  svg.addEventListener("reading", (event) => {
    line.textContent = /** @type {CustomEvent<string>} */ (event).detail || "\u00a0";
  });
  return h("div", { class: "runs-chart" }, svg, line);
}

/** One of the columns of each run: a run that stands there twice has one loss. @param {Place[]} places */
const ofEachRun = (places) => grouped(places, ({ run }) => run.id);

/** @param {Place[]} group */
const groupName = (group) => (group.length > 1 ? `${group.map(({ letter }) => letter).join(", ")} ${nameOf(group[0]).slice(2)}` : nameOf(group[0]));

/** All x of all series, in order: where the pointer stops. @param {Series[]} series */
const union = (series) => Float64Array.from(new Set(series.flatMap((one) => Array.from(one.x ?? [])))).sort();

export class Loss {
  /** @param {(change: Partial<Chosen>) => void} choose */
  constructor(choose) {
    this.choose = choose;
    this.body = h("div");
    this.note = h("p", { class: "quiet" });
    this.controls = h("div", { class: "runs-tools" });
    this.root = h("div", { class: "runs-row" }, h("div", { class: "runs-title" }, h("h3", null, "Training loss"), this.controls), this.body, this.note);
    /** @type {Map<string, Curve>} by run */
    this.curves = new Map();
    /** Which curves the chart shows, and along what. */
    this.drawn = "";
    /** @type {() => void} */
    this.again = () => {};
  }

  /** @param {Place[]} places @param {Chosen} chosen @param {AbortSignal} signal */
  async show(places, chosen, signal) {
    const { axis } = chosen;
    /** @type {Map<string, Curve>} */
    const curves = new Map();
    const list = this.controls.querySelector("select");
    if (list) list.value = axis;
    else this.controls.append(curveControls(() => this.again()), axisChoice(chosen, this.choose));
    /** @type {string[]} */
    const missing = [];
    /** @type {Series[]} */
    const series = [];
    for (const group of ofEachRun(places)) {
      const [{ run, index }] = group;
      try {
        const found = (await arrays(at(run.id, "/losses"), { signal })).arrays;
        const curve = { step: floats(found.loss_step), seconds: floats(found.loss_seconds), loss: floats(found.loss) };
        if (!curve.loss.length) {
          missing.push(`${lettersOf(group)}: ${run.name} recorded no loss.`);
          continue;
        }
        curves.set(run.id, curve);
        series.push({ name: groupName(group), x: curve[axis], y: curve.loss, colour: index });
      } catch (error) {
        if (isAbort(error)) throw error;
        missing.push(`${lettersOf(group)}: ${error instanceof Error ? error.message : error}.`);
      }
    }
    this.curves = curves;
    this.draw(series, axis);
    this.note.textContent = [unlike(places), ...missing].filter(Boolean).join(" ");
  }

  /** @param {Series[]} series @param {"step" | "seconds"} axis */
  draw(series, axis) {
    this.again = () => this.draw(series, axis);
    const svg = this.body.querySelector("svg");
    const drawn = JSON.stringify([axis, series.map(({ name, colour }) => [name, colour])]);
    // A curve that has grown is not taken from under who reads it.
    if (svg && drawn === this.drawn) return redraw(svg, { x: union(series), ...asChosen(series) });
    clear(this.body);
    this.drawn = drawn;
    if (!series.length) return;
    this.body.append(read({ title: "Training loss of the compared runs", x: union(series), ...asChosen(series), height: 220,
      xLabel: axis === "step" ? "training step" : "seconds of training", yLabel: series.length > 1 ? "loss" : `loss of ${series[0].name}` }));
  }

  /** When a checkpoint was there, on the axis that is chosen. @param {Place} place @param {number} step @param {"step" | "seconds"} axis */
  x({ run }, step, axis) {
    const curve = this.curves.get(run.id);
    return axis === "step" || !curve ? step : curve.seconds[nearest(curve.step, step)];
  }
}

/** Where losses are of different things. @param {Place[]} places */
function unlike(places) {
  const things = grouped(places, ({ run }) => `${run.data} ${run.shape} ${run.process} ${run.target} ${run.noise_path}`);
  return things.length > 1 ? `Losses of different data, targets or processes are on different scales: compare heights only within ${things.map(lettersOf).join("; within ")}.` : "";
}

export class Quality {
  /** @param {(error: unknown) => void} fail @param {(change: Partial<Chosen>) => void} choose @param {Loss} loss @param {() => void} refresh */
  constructor(fail, choose, loss, refresh) {
    this.refresh = refresh;
    this.fail = fail;
    this.choose = choose;
    this.loss = loss;
    this.body = h("div", { class: "runs-charts" });
    this.line = h("p", { class: "quiet", role: "status" });
    this.button = h("button", { type: "button", class: "tool", onclick: () => (this.control ? this.control.abort() : void this.measure()) }, "Measure");
    this.tools = h("div", { class: "runs-tools" });
    this.root = h("div", { class: "runs-row" }, h("div", { class: "runs-title" }, h("h3", null, "Quality"), this.tools), this.body, this.line);
    /** @type {AbortController | null} */
    this.control = null;
    /** @type {Map<string, Figures>} by path */
    this.known = new Map();
    /** @type {{places: Place[], chosen: Chosen, data: Map<string, string>} | null} */
    this.now = null;
  }

  /** @param {Place[]} places @param {Chosen} chosen @param {Map<string, string>} data what each run was trained on */
  show(places, chosen, data) {
    this.control?.abort();
    this.now = { places, chosen, data };
    if (exported) {
      this.line.textContent = "Drawing samples at other checkpoints and measuring them needs the network: start ditlab lab.";
      return;
    }
    const list = this.tools.querySelector("select");
    if (!list) this.tools.replaceChildren(countChoice(chosen, this.choose), this.button);
    else list.value = String(chosen.n);
    this.line.textContent = `Draws ${chosen.n} samples at up to ${MOST_CHECKPOINTS} checkpoints of each run, and measures them as ditlab eval does.`;
    this.draw();
  }

  /** @param {Place} place @param {number} step */
  path({ run }, step) {
    return at(run.id, `/quality${query({ step, weights: selection.weights, n: this.now?.chosen.n, seed: 0 })}`);
  }

  /** The columns' figures at their own checkpoints, where they were measured. @param {Place} place @returns {Figures | undefined} */
  of(place) {
    return this.known.get(this.path(place, place.step));
  }

  /** One checkpoint after the other, so that other questions find the lab free in between. */
  async measure() {
    if (!this.now) return;
    const { places } = this.now;
    const groups = ofEachRun(places);
    const steps = new Map(groups.map(([place]) => [place.run.id, some(place.run.checkpoints)]));
    const all = [...steps.values()].reduce((sum, list) => sum + list.length, 0);
    const control = new AbortController();
    const signal = living(control.signal);
    this.control = control;
    this.button.textContent = "Stop";
    /** @type {string[]} */
    const troubles = [];
    let done = 0;
    try {
      for (const [place] of groups) {
        for (const step of steps.get(place.run.id) ?? []) {
          this.line.textContent = `Measuring ${place.letter} at step ${step.toLocaleString("en")}: ${done} of ${all} checkpoints done.`;
          const trouble = await this.one(place, step, signal);
          done += 1;
          if (!trouble) continue;
          troubles.push(`${place.letter}: ${trouble}.`);
          break;
        }
      }
      this.line.textContent = [this.words(), ...troubles].join(" ");
    } catch (error) {
      if (isAbort(error)) this.line.textContent = `Stopped: ${done} of ${all} checkpoints are measured.`;
      else this.fail(error);
    }
    if (this.control === control) this.control = null;
    this.button.textContent = "Measure";
  }

  /** @param {Place} place @param {number} step @param {AbortSignal} signal @returns {Promise<string | null>} why it cannot be measured */
  async one(place, step, signal) {
    const path = this.path(place, step);
    try {
      this.known.set(path, await json(path, { signal }));
      this.draw();
      this.refresh();
      return null;
    } catch (error) {
      if (isAbort(error)) throw error;
      return error instanceof Error ? error.message : String(error);
    }
  }

  words() {
    const { places, chosen } = this.now ?? { places: [], chosen: { n: 0 } };
    const left = places.filter(({ run }) => run.checkpoints.length > MOST_CHECKPOINTS);
    const spread = left.length ? ` Only ${MOST_CHECKPOINTS} checkpoints of ${lettersOf(left)} were measured.` : "";
    return `Each figure is measured on ${chosen.n} samples, drawn with the run's own settings; another seed gives a different figure.${spread}`;
  }

  /** A chart for each kind of data: figures of different data have no common axis. */
  draw() {
    if (!this.now) return;
    const { places, data, chosen } = this.now;
    clear(this.body);
    const kinds = grouped(places, ({ run }) => data.get(run.id) ?? run.id);
    for (const group of kinds) {
      const chart = this.chart(group, chosen.axis, kinds.length > 1);
      if (chart) this.body.append(chart);
    }
    if (kinds.length > 1) this.body.append(h("p", { class: "quiet" }, `${kinds.map(lettersOf).join("; ")}: trained on different data, so their figures do not share an axis.`));
  }

  /** @param {Place[]} places of the same data @param {"step" | "seconds"} axis @param {boolean} named */
  chart(places, axis, named) {
    const { figure, words, level, levelWords } = figureOf(places[0]);
    let floor = NaN;
    /** @type {Series[]} */
    const series = ofEachRun(places).flatMap((group) => {
      const [place] = group;
      const found = place.run.checkpoints.map((step) => ({ step, figures: this.known.get(this.path(place, step)) })).filter((one) => one.figures);
      if (!found.length) return [];
      if (level) floor = found[0].figures?.[level];
      return [{ name: groupName(group), x: found.map(({ step }) => this.loss.x(place, step, axis)), y: found.map(({ figures }) => figures?.[figure]), colour: place.index, dots: true }];
    });
    if (!series.length) return null;
    const x = union(series);
    if (Number.isFinite(floor)) series.push({ name: levelWords, x: [x[0], x[x.length - 1]], y: [floor, floor], colour: 6, dashed: true });
    return h("figure", { class: "runs-quality" }, h("figcaption", null, h("b", null, words), named && ` ${lettersOf(places)}`),
      read({ title: words, x, series, height: 220, yMax: /^share/.test(words) ? 1 : undefined, xLabel: axis === "step" ? "training step" : "seconds of training", yLabel: words }));
  }
}

/** Some of many, spread evenly, the last among them. @param {number[]} all */
function some(all) {
  if (all.length <= MOST_CHECKPOINTS) return all;
  return Array.from({ length: MOST_CHECKPOINTS }, (_, i) => all[Math.round((i * (all.length - 1)) / (MOST_CHECKPOINTS - 1))]);
}

/** @param {Figures | undefined} figures @param {Place} place */
export const figureText = (figures, place) => (figures ? number(figures[figureOf(place).figure]) : "not measured");
