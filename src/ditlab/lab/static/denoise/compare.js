/** Two denoisers side by side: the same noise, two settings, one slider over t. Images and points bring their own views. */
import { h, keepFocus, table } from "../draw/dom.js";
import { number } from "../draw/format.js";
import { nearest } from "../draw/math.js";
import { slider } from "../draw/player.js";
import { arrays, at, floats, query } from "../page/api.js";
import { panel, snippet } from "../page/panel.js";
import { onChange, select, selection, whichWeights } from "../page/state.js";
import { asked, controls, defaults, read, seedControl, title, write } from "./settings.js";

/**
 * @typedef {import("../page/api.js").Run} Run
 * @typedef {import("../page/api.js").Arrays} Arrays
 * @typedef {import("../page/panel.js").Panel} Panel
 * @typedef {import("./settings.js").Setting} Setting
 * @typedef {"a" | "b"} Name
 * @typedef {{root: HTMLElement, show: (answer: Arrays, index: number) => void}} SideView
 * @typedef {object} View what differs between images and points
 * @property {string} intro
 * @property {number} n samples asked for
 * @property {string} unit of the difference between two samples, in words
 * @property {HTMLElement | null} [extra] a control of its own
 * @property {(onPick: (t: number) => void) => SideView} side
 * @property {{root: HTMLElement, show: (a: Arrays, b: Arrays) => void}} between the final difference
 * @property {(x: Float32Array, y: Float32Array) => number} distance mean distance between two states
 * @property {() => HTMLCanvasElement | null} picture
 * @property {(redraw: () => void) => void} [onRedraw] the view itself wants to be drawn again
 */
/** @typedef {{name: Name, setting: Setting, answer: Arrays | null, times: Float32Array, view: SideView, head: HTMLElement, note: HTMLElement}} Side */

export class Comparison {
  /** @param {Run} run @param {View} view */
  constructor(run, view) {
    this.run = run;
    this.view = view;
    this.controls = h("div", { class: "compare-controls" });
    this.slider = slider({ label: "Where both stand, from noise to data", values: [1, 0], value: 1, format: (t) => t.toFixed(2), play: true }, (t) => this.pick(t));
    this.sides = { a: this.side("a"), b: this.side("b") };
    this.verdict = h("p", { class: "compare-verdict", "aria-live": "polite" });
    this.panel = this.frame();
    view.onRedraw?.(() => this.show());
  }

  /** @param {Name} name @returns {Side} */
  side(name) {
    return {
      name, setting: defaults(this.run)[name === "a" ? 0 : 1], answer: null, times: new Float32Array(),
      view: this.view.side((t) => this.jump(t)), head: h("h3", { class: "compare-head" }, name.toUpperCase()), note: h("p", { class: "compare-note" }),
    };
  }

  /** @returns {Panel} */
  frame() {
    const { a, b } = this.sides;
    const made = panel({
      id: "denoise", title: "Denoise", intro: this.view.intro,
      python: () => this.python(),
      download: () => this.download(),
      picture: () => this.view.picture(),
      legends: false,
      caption: () => `A: ${title(this.run, this.sides.a.setting)}; B: ${title(this.run, this.sides.b.setting)}; seed ${this.sides.a.setting.seed}${this.run.shape.length === 3 ? "; above xₜ, below predicted x₀, from t = 1 to t = 0" : ""}`,
      table: () => this.table(),
    });
    made.body.classList.add("compare");
    const column = (/** @type {Side} */ { name, head, note, view }) => h("div", { class: `compare-side compare-${name}` }, head, note, view.root);
    made.body.append(this.controls, h("div", { class: "compare-time" }, this.slider.root), h("div", { class: "compare-sides" }, column(a), column(b)),
      h("div", { class: "compare-between" }, this.view.between.root, this.verdict));
    return made;
  }

  /** Read both settings from the selection, and ask for what is new. */
  settle() {
    const [own, other] = defaults(this.run);
    const { a, b } = this.sides;
    a.setting = read(selection.a, this.run, own);
    b.setting = { ...read(selection.b, this.run, other), seed: a.setting.seed };
    keepFocus(this.controls, () => this.drawControls());
    this.load();
  }

  drawControls() {
    const { a, b } = this.sides;
    const choose = (/** @type {Setting} */ left, /** @type {Setting} */ right) => select({ a: write(left), b: write(right) });
    this.controls.replaceChildren(
      controls("A", this.run, a.setting, (setting) => choose(setting, b.setting)),
      controls("B", this.run, b.setting, (setting) => choose(a.setting, setting)),
      h("div", { class: "compare-shared" }, seedControl(a.setting, (seed) => choose({ ...a.setting, seed }, { ...b.setting, seed })), this.view.extra ?? null),
    );
  }

  load() {
    this.panel.ask(async (signal) => {
      const { a, b } = this.sides;
      const [one, other] = await Promise.all([a, b].map(({ setting }) =>
        arrays(at(this.run.id, `/trajectory${query({ ...whichWeights(), ...asked(setting, this.view.n) })}`), { signal })));
      [a.answer, b.answer] = [one, other];
      [a.times, b.times] = [floats(one.arrays.t), floats(other.arrays.t)];
      // The slider stops where the finer of the two does.
      const finer = a.times.length >= b.times.length ? a : b;
      this.slider.setValues([...finer.times]);
      this.slider.set(this.t);
      this.show();
    });
  }

  /** In the middle, where most is going on, until a time is chosen. */
  get t() {
    return selection.at ?? 0.5;
  }

  /** To a time that was pointed at. @param {number} t */
  jump(t) {
    this.slider.stop();
    this.pick(t);
  }

  /** @param {number} t */
  pick(t) {
    select({ at: Number(t.toFixed(4)) });
  }

  show() {
    const { a, b } = this.sides;
    for (const side of [a, b]) {
      if (!side.answer) continue;
      const index = nearest(side.times, this.t);
      const runs = Number(side.answer.meta.evaluations ?? NaN);
      side.head.replaceChildren(h("span", { class: `side side-${side.name}` }, side.name.toUpperCase()), ` ${title(this.run, side.setting)}`);
      side.note.textContent = `t = ${side.times[index].toFixed(2)}, after step ${index} of ${side.times.length - 1}`
        + (Number.isFinite(runs) ? ` · ${runs} network ${runs === 1 ? "evaluation" : "evaluations"} in all${side.setting.guidance === 1 ? "" : " (guidance needs them in pairs, with and without the label)"}` : "");
      side.view.show(side.answer, index);
    }
    if (!a.answer || !b.answer) return;
    this.view.between.show(a.answer, b.answer);
    this.verdict.replaceChildren(...this.sentence(a.answer, b.answer));
  }

  /** @param {Arrays} a @param {Arrays} b @returns {(Node | string)[]} */
  sentence(a, b) {
    const apart = this.view.distance(this.state(a, -1), this.state(b, -1));
    const [runsA, runsB] = [a, b].map((one) => (one.meta.evaluations === "1" ? "once" : `${one.meta.evaluations ?? "?"} times`));
    return [h("strong", { class: "compare-number" }, apart < 5e-4 ? apart.toExponential(1) : apart.toFixed(3)), ` ${this.view.unit}. `,
      `A asked the network ${runsA}, B ${runsB}.`];
  }

  /** One state of a trajectory; −1 is the last. @param {Arrays} answer @param {number} index @param {string} [name] */
  state(answer, index, name = "x") {
    const values = answer.arrays[name];
    const size = values.data.length / values.shape[0];
    const from = (index < 0 ? values.shape[0] + index : index) * size;
    return floats(values).subarray(from, from + size);
  }

  python() {
    const call = (/** @type {Setting} */ setting) => {
      const { solver, steps, guidance, seed, label, cond, n } = asked(setting, this.view.n);
      return { solver, steps, guidance: guidance ?? undefined, seed, label: label ?? undefined, cond: cond ?? undefined, n };
    };
    const [a, b] = [this.sides.a, this.sides.b].map((side) => snippet(this.run, "trajectory", call(side.setting), '["x"]', false));
    const last = (/** @type {string} */ text) => text.trimEnd().split("\n").pop() ?? "";
    const head = a.trimEnd().split("\n").slice(0, -1);
    return [...head, `a = ${last(a)}  # (steps + 1, n, …)`, `b = ${last(b)}`, "abs(a[-1] - b[-1]).mean()", ""].join("\n");
  }

  download() {
    const { a, b } = this.sides;
    if (!a.answer || !b.answer) return null;
    const named = (/** @type {Side} */ side) => Object.entries(side.answer?.arrays ?? {}).map(([name, values]) => [`${side.name}_${name}`, values]);
    return { name: `${this.run.name}-denoise`, arrays: Object.fromEntries([...named(a), ...named(b)]) };
  }

  table() {
    const rows = Object.values(this.sides).flatMap((side) => {
      const { answer } = side;
      if (!answer) return [];
      const end = this.state(answer, -1);
      return Array.from(side.times, (t, i) => [`${side.name.toUpperCase()}, step ${i}`, t.toFixed(3), number(this.view.distance(this.state(answer, i), end)),
        number(this.view.distance(this.state(answer, i, "x0"), end))]);
    });
    return table(`A is ${title(this.run, this.sides.a.setting)}; B is ${title(this.run, this.sides.b.setting)}. Distances are means.`,
      ["state", "t", "xₜ to the end", "predicted x₀ to the end"], rows);
  }

  /** @param {HTMLElement} root */
  mount(root) {
    root.append(this.panel.root);
    onChange(["a", "b"], () => this.settle());
    onChange(["at"], () => {
      this.slider.set(this.t);
      this.show();
    });
    onChange(["step", "weights"], () => this.load());
    this.settle();
  }
}
