/** Section 5, Watch the gates open: what training recorded of every gate, and what the network drew at that step. */
import { pairedBars } from "../draw/bars.js";
import { lineChart, redraw, setMarker } from "../draw/chart.js";
import { h, table } from "../draw/dom.js";
import { number } from "../draw/format.js";
import { nearest } from "../draw/math.js";
import { slider } from "../draw/player.js";
import { arrays, at, forget, picture, query } from "../page/api.js";
import { curveControls } from "../page/curve_controls.js";
import { onNews } from "../page/live.js";
import { panel, snippet } from "../page/panel.js";
import { Recording } from "../page/recording.js";
import { onChange, select, selection, whichWeights } from "../page/state.js";
import { addLosses, lossLine } from "./losses.js";

/**
 * @typedef {import("../page/api.js").Run} Run
 * @typedef {import("../page/api.js").Arrays} Arrays
 * @typedef {import("../page/panel.js").Panel} Panel
 * @typedef {import("../page/live.js").News} News
 */

/** @type {[string, string]} */
const BRANCHES = ["attention", "MLP"];

class Gates {
  /** @param {Run} run */
  constructor(run) {
    this.run = run;
    this.path = at(run.id, `/gates${query(whichWeights())}`);
    /** @type {Recording | null} */
    this.recording = null;
    /** @type {(index: number) => void} */
    this.update = () => {};
    this.grow = () => {};
    this.look = curveControls(() => this.grow());
    this.index = 0;
    this.turn = Promise.resolve();
    /** The last step that was told of while the recordings were on their way. */
    this.told = -1;
    this.panel = panel({
      id: "gates",
      title: "Watch the gates open",
      intro: "Each block adds its attention and its MLP through a gate, x ← x + gate ⊙ f(x). The time t sets the gates, and they start at 0 (adaLN-Zero): every block at first passes its tokens on unchanged, and the untrained network’s output is 0. This is what training did to them.",
      python: () => snippet(run, "gates", {}, '["gate"]  # (steps, t, blocks, attention and MLP)', false),
      download: () => this.recording && { name: `${run.name}-gates`, arrays: this.recording.found },
      picture: () => this.panel.body.querySelector(".bars"),
      caption: () => `mean |gate| of every block at training step ${this.recording?.steps[this.index].toLocaleString("en")}`,
      table: () => this.table(),
    });
  }

  load() {
    if (this.run.step === null && this.run.last_recording === null) return this.panel.status("Nothing is recorded yet.");
    this.panel.status("");
    this.panel.ask(async (signal) => {
      const recording = new Recording(await arrays(this.path, { signal }));
      this.recording = recording;
      this.build(recording);
      if (this.told > recording.steps[recording.steps.length - 1]) this.follow({ recorded: this.told });
    });
  }

  /** What a run that is still training has done since, one thing after the other. @param {News} news */
  follow(news) {
    this.turn = this.turn.then(() => this.take(news));
  }

  /** @param {News} news */
  async take(news) {
    const { recording } = this;
    if (!recording && !news.cut && this.panel.pending()) {
      this.told = news.recorded ?? this.told;
      return;
    }
    if (!recording || news.cut) {
      this.run.last_recording = news.recorded ?? this.run.last_recording;
      forget(this.path);
      if (news.cut || typeof news.recorded === "number") this.load();
      return;
    }
    if (news.losses) addLosses(recording.found, news.losses);
    if (news.previews) recording.previews = news.previews;
    const last = recording.steps[recording.steps.length - 1];
    const atEnd = this.index === recording.steps.length - 1;
    if ((news.recorded ?? 0) > last) {
      await this.panel.attempt(async () => recording.add(await arrays(at(this.run.id, `/gates${query({ after: last })}`))));
      if (atEnd && selection.train !== null) select({ train: recording.steps[recording.steps.length - 1] });
    } else if (!news.losses && !news.previews) return;
    this.grow();
    this.move();
  }

  /** @param {Recording} recording */
  build(recording) {
    const { steps } = recording;
    // Good before the first click: the end of training, or what the address says.
    this.index = nearest(steps, selection.train ?? steps[steps.length - 1]);
    const choose = (/** @type {number} */ step) => select({ train: recording.steps[nearest(recording.steps, step)] });
    const control = slider({ label: "Training step", values: steps, value: steps[this.index], format: (step) => step.toLocaleString("en"), play: true }, choose);
    const loss = lossChart(recording, choose);
    const depth = depthChart(recording, choose);
    const bars = pairedBars({
      title: "mean |gate| of every block", description: "Bars: mean over channels, samples and t. Whiskers: the smallest and the largest mean over t. Arrow keys walk from block to block.",
      pairs: recording.pairs(this.index), names: BRANCHES, top: recording.top,
    });
    const tiles = tilesOf(recording);
    const drawn = preview(this.run, recording);
    const story = h("p", { class: "gates-story" }, recording.story);
    this.panel.body.replaceChildren(
      h("div", { class: "gates-top" }, titled("Training loss", loss, this.look), titled("Effective depth, of " + 2 * recording.layers, depth)),
      h("div", { class: "gates-control" }, control.root),
      h("div", { class: "gates-main" },
        h("div", { class: "gates-bars" }, h("h3", { class: "chart-title" }, "mean |gate|"), bars.svg, tiles.root, story, definition()),
        drawn.root),
    );
    this.update = (index) => {
      const step = recording.steps[index];
      this.index = index;
      control.set(step);
      setMarker(loss, step);
      setMarker(depth, step);
      bars.update(recording.pairs(index), recording.top);
      tiles.update(index);
      drawn.update(index === recording.steps.length - 1 ? Infinity : step);
    };
    this.grow = () => {
      control.setValues(recording.steps);
      story.textContent = recording.story;
      redraw(loss, lossLine(recording.found));
      redraw(depth, depthLine(recording));
    };
    this.update(this.index);
  }

  move() {
    if (!this.recording) return;
    const { steps } = this.recording;
    this.update(nearest(steps, selection.train ?? steps[steps.length - 1]));
    this.panel.refresh();
  }

  table() {
    const { recording, index } = this;
    if (!recording) return null;
    const { mean, low, high } = recording.depth(index);
    const rows = recording.pairs(index).flatMap((pair, block) => pair.map((bar, side) =>
      [`block ${block}, ${BRANCHES[side]}`, number(bar.mean), number(bar.low), number(bar.high)]));
    return table(`mean |gate| at training step ${recording.steps[index].toLocaleString("en")}`, ["branch", "mean", "lowest over t", "highest over t"],
      [...rows, ["effective depth", number(mean), number(low), number(high)]]);
  }
}

/** @param {string} title @param {SVGSVGElement} chart @param {HTMLElement} [controls] */
const titled = (title, chart, controls) => h("div", { class: "gates-chart" }, h("div", { class: "chart-head" }, h("h3", { class: "chart-title" }, title), controls), chart);

/** @param {Recording} recording @param {(step: number) => void} onPick */
function lossChart(recording, onPick) {
  return lineChart({
    title: "Training loss over training steps", ...lossLine(recording.found),
    xLabel: "training step", yLabel: "loss", height: 190, onPick,
  });
}

/** @param {Recording} recording @param {(step: number) => void} onPick */
function depthChart(recording, onPick) {
  return lineChart({
    title: "Effective depth over training steps", xLabel: "training step", yLabel: "mean over t; band: its spread", height: 190, onPick,
    ...depthLine(recording), yMax: 2 * recording.layers,
  });
}

/** @param {Recording} recording */
function depthLine(recording) {
  const spreads = recording.steps.map((_, i) => recording.depth(i));
  return { x: recording.steps, series: [{ name: "effective depth", y: spreads.map((one) => one.mean), low: spreads.map((one) => one.low), high: spreads.map((one) => one.high) }] };
}

/** The two numbers of the step. @param {Recording} recording */
function tilesOf(recording) {
  const gate = h("span", { class: "tile-value" });
  const depth = h("span", { class: "tile-value" });
  const note = h("span", { class: "tile-note" });
  const root = h("dl", { class: "tiles" },
    h("div", { class: "tile" }, h("dt", null, "mean |gate|"), h("dd", null, gate, h("span", { class: "tile-note" }, "over all branches"))),
    h("div", { class: "tile" }, h("dt", null, "effective depth"), h("dd", null, depth, note)));
  return { root, update: (/** @type {number} */ index) => {
    const { mean, low, high } = recording.depth(index);
    gate.textContent = recording.mean(index).toFixed(3);
    depth.textContent = mean.toFixed(1);
    note.textContent = `of ${2 * recording.layers} branches; ${low.toFixed(1)} to ${high.toFixed(1)} over t`;
  } };
}

function definition() {
  return h("p", { class: "definition" }, "Effective depth: (Σ c)² / Σ c² over all branches, where c = mean ‖gate ⊙ f‖ / ‖x‖ is how much a branch adds to its input. ",
    "It is the number of branches if all add equally, 1 if one does all the work, and 0 while every gate is shut.");
}

/** How the gates of a run went, in words. @param {Run} run */
export const gateStory = async (run) => new Recording(await arrays(at(run.id, `/gates${query(whichWeights())}`))).story;

/** The picture drawn from the same noise. @param {Run} run @param {Recording} recording */
function preview(run, recording) {
  const image = h("img", { class: "gates-picture", alt: "" });
  const caption = h("figcaption");
  const root = h("figure", { class: "gates-preview" }, h("h3", { class: "chart-title" }, "The same noise, drawn at that step"), image, caption);
  let shown = -1;
  return { root, update: (/** @type {number} */ step) => {
    const found = recording.preview(step);
    root.hidden = found === undefined;
    if (found === undefined || found === shown) return;
    shown = found;
    image.src = picture(at(run.id, `/samples/${found}`));
    image.alt = `Samples from the same noise at every step, drawn after ${found.toLocaleString("en")} training steps`;
    caption.textContent = `Samples after ${found.toLocaleString("en")} steps, the newest picture up to the chosen step. Their noise is the same at every step.`
      + (run.data === "latents" ? " These are false colours of latents, which were not kept: they cannot be decoded." : "");
  } };
}

/** @param {HTMLElement} root @param {Run} run */
export function mount(root, run) {
  const section = new Gates(run);
  root.append(section.panel.root);
  onChange(["train"], () => section.move());
  onNews((news) => section.follow(news));
  section.load();
}
