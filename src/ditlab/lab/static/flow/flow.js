/** Section 1, Shape flow: the loaded network as a diagram, with what its hooks measured. */
import { diverging, grey } from "../draw/color.js";
import { h, table } from "../draw/dom.js";
import { percent } from "../draw/format.js";
import { arrays, at, floats, isAbort, json, query } from "../page/api.js";
import { inputName } from "../page/inputs.js";
import { land } from "../page/land.js";
import { panel, snippet } from "../page/panel.js";
import { WHERE, onChange, select, selection, where, whichWeights } from "../page/state.js";
import { chainScene } from "./chain.js";
import { drawScene } from "./draw.js";
import { meaning } from "./meaning.js";
import { milliseconds, outText, shapeText, shapes, short, transformer } from "./model.js";
import { lightUp, play } from "./play.js";
import { narrowScene, wideScene } from "./scene.js";

/**
 * @typedef {import("../page/api.js").Run} Run
 * @typedef {import("../page/api.js").Arrays} Arrays
 * @typedef {import("../page/panel.js").Panel} Panel
 * @typedef {import("./model.js").Flow} Flow
 * @typedef {import("./model.js").Node} Node
 * @typedef {import("./layout.js").Box} Box
 * @typedef {import("./layout.js").Scene} Scene
 */

/** From this width on the diagram is a U; below it, a column. */
const WIDE = 1000;

class ShapeFlow {
  /** @param {Run} run */
  constructor(run) {
    this.run = run;
    /** @type {Flow | null} */
    this.flow = null;
    /** @type {Arrays | null} */
    this.images = null;
    /** @type {Scene | null} */
    this.scene = null;
    /** @type {SVGSVGElement | null} */
    this.svg = null;
    /** @type {{stop: () => void} | null} */
    this.playing = null;
    this.all = false;
    this.told = "";
    this.width = 0;
    /** How tall the card gets, and what that was measured at. */
    this.tall = { key: "", height: 0 };
    this.stage = h("div", { class: "flow-stage" });
    this.card = h("div", { class: "flow-card", role: "status", "aria-live": "polite" });
    this.button = h("button", { type: "button", class: "flow-play", "aria-pressed": false, onclick: () => this.toggle() }, "▶ Send a batch through");
    this.fewer = h("button", { type: "button", class: "tool", hidden: true, onclick: () => this.show(false) }, "Fold blocks that are alike");
    this.totals = h("p", { class: "flow-totals" });
    this.panel = this.frame();
  }

  /** @returns {Panel} */
  frame() {
    const made = panel({
      id: "flow",
      title: "Shape flow",
      intro: "The parts that a batch passes through in this network, measured by hooks on one forward pass. Point at a part, or walk with the arrow keys, for its numbers; click to go to its section.",
      python: () => snippet(this.run, "flow", {}, "", false),
      download: () => this.download(),
      picture: () => this.svg,
      caption: ({ t, input }) => (this.images ? `t = ${t.toFixed(2)}, ${inputName(input)}` : ""),
      table: () => this.table(),
    });
    made.body.classList.add("flow");
    made.body.append(h("div", { class: "flow-bar" }, this.button, this.fewer, this.totals), h("div", { class: "flow-whole" }, this.stage, this.card));
    return made;
  }

  load() {
    this.panel.ask(async (signal) => {
      this.flow = withSubscripts(await json(at(this.run.id, `/flow${query(whichWeights())}`), { signal }));
      this.draw();
      if (this.run.shape.length < 2) return;
      // The pictures at both ends are an extra: other sections report what is wrong with the input.
      this.images = await arrays(at(this.run.id, `/input${query(where())}`), { signal }).catch((error) => (isAbort(error) ? this.images : null));
      this.draw();
    });
  }

  draw() {
    const { flow } = this;
    this.width = this.stage.parentElement?.clientWidth || 1000;
    if (!flow) return;
    this.stop();
    const model = transformer(flow);
    const open = Math.min(Math.max(0, selection.layer), (model?.blocks.length ?? 1) - 1);
    const options = { open, all: this.all, width: this.width };
    const wide = this.width >= WIDE;
    this.panel.body.classList.toggle("flow-wide", Boolean(model) && wide);
    this.panel.body.classList.toggle("flow-chain", !model);
    this.scene = !model ? chainScene(flow.nodes, this.width) : wide ? wideScene(model, { ...options, room: this.tallest(flow) }) : narrowScene(model, options);
    const focused = document.activeElement?.closest("g[data-node]")?.getAttribute("data-node");
    this.svg = drawScene(this.scene, `${this.run.name}: from xₜ to the prediction`, `${flow.nodes.length} parts. Arrow keys walk from part to part.`, {
      describe: (node) => this.sentence(node),
      onFocus: (node) => this.tell(node),
      onAct: (box) => this.act(box),
      pixels: (kind) => this.pixels(kind),
    });
    this.stage.replaceChildren(this.svg);
    this.svg.classList.toggle("flow-small", this.width < 520);
    this.summarise(flow);
    this.introduce(flow, model?.blocks[open].attention);
    this.restore(focused);
  }

  /** How tall the card gets with the longest text: in the U, the diagram leaves that room. @param {Flow} flow */
  tallest(flow) {
    const key = `${this.width} ${getComputedStyle(document.documentElement).fontSize} ${selection.step}`;
    if (this.tall.key === key) return this.tall.height;
    const probe = h("div", { class: "flow-card flow-probe", "aria-hidden": "true" });
    this.card.after(probe);
    const kinds = new Map(flow.nodes.map((node) => [node.kind, node]));
    const heights = [...kinds.values()].map((node) => {
      probe.replaceChildren(...this.contents(node, flow));
      return probe.offsetHeight;
    });
    probe.remove();
    this.tall = { key, height: Math.max(...heights) };
    return this.tall.height;
  }

  /** Keep the keyboard where it was when the diagram is drawn anew. @param {string | null | undefined} name */
  restore(name) {
    if (!name || !this.svg) return;
    const group = [...this.svg.querySelectorAll("g[data-node]")].find((one) => one.getAttribute("data-node") === name);
    /** @type {SVGGElement | undefined} */ (group)?.focus();
  }

  /** @param {Flow} flow */
  summarise(flow) {
    this.totals.replaceChildren(
      h("strong", null, flow.parameters.toLocaleString("en")), " parameters · ",
      h("strong", null, short(flow.macs)), " multiply-accumulates · ", h("strong", null, milliseconds(flow.ms)), " for one image, the median of warm passes",
    );
    this.fewer.hidden = !this.all;
  }

  /** Keep telling of the part told of before; if it is folded away now, of the open block's. @param {Flow} flow @param {Node | undefined} inside */
  introduce(flow, inside) {
    const boxes = this.scene?.boxes ?? [];
    const told = boxes.find((box) => box.node?.name === this.told && box.shape !== "frame")?.node;
    this.tell(told ?? inside ?? flow.nodes.reduce((most, node) => (node.macs > most.macs ? node : most)));
  }

  /** @param {string} kind */
  pixels(kind) {
    const name = kind === "input" ? "x" : "prediction";
    const image = this.images?.arrays[name];
    if (!image || (kind !== "input" && kind !== "output")) return null;
    const data = floats(image);
    const largest = data.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6);
    const signed = kind === "output" && this.run.target !== "x0";
    return { shape: image.shape, data, color: signed ? diverging : grey, scale: signed ? largest : 1 };
  }

  /** @param {Node} node @returns {string} */
  sentence(node) {
    const takes = node.in.map(shapeText).filter(Boolean).join(" and ");
    return `${node.title}: ${takes ? `${takes} to ` : ""}${outText(node)}, ${node.parameters.toLocaleString("en")} parameters, `
      + `${short(node.macs)} multiply-accumulates, ${milliseconds(node.ms)}.`;
  }

  /** @param {Node} node */
  tell(node) {
    const { flow } = this;
    if (!flow) return;
    this.told = node.name;
    this.card.replaceChildren(...this.contents(node, flow));
    if (this.svg && !this.playing) lightUp(this.svg, node.name);
  }

  /** What the card says of a part. @param {Node} node @param {Flow} flow @returns {(HTMLElement | string)[]} */
  contents(node, flow) {
    const [text, formula] = meaning(node, this.run.target, transformer(flow));
    const share = (/** @type {number} */ part, /** @type {number} */ all) => (all > 0 ? part / all : 0);
    const where = node.block === null || node.kind === "block" ? "" : `, block ${node.block}`;
    return [
      h("h3", null, `${node.title}${where}`),
      h("p", { class: "flow-text" }, text),
      formula ? h("p", { class: "flow-formula" }, formula) : "",
      h("dl", { class: "flow-numbers" },
        row("shape", shapes(node)),
        row("parameters", node.parameters.toLocaleString("en"), share(node.parameters, flow.parameters)),
        row("multiply-accumulates", short(node.macs), share(node.macs, flow.macs)),
        row("time", milliseconds(node.ms), share(node.ms, flow.ms))),
    ];
  }

  /** @param {Box} box */
  act(box) {
    if (box.does === "all") return this.show(true);
    if (box.does === "open") return select({ layer: box.block ?? 0 });
    const section = box.node?.section;
    const target = section && document.getElementById(section);
    if (!target) return;
    if (box.node?.block !== null && box.node?.block !== undefined) select({ layer: box.node.block });
    land(() => document.getElementById(section));
    const heading = target.querySelector("h2");
    heading?.setAttribute("tabindex", "-1");
    heading?.focus({ preventScroll: true });
  }

  /** @param {boolean} all */
  show(all) {
    this.all = all;
    this.draw();
  }

  toggle() {
    if (this.playing) return this.stop();
    if (!this.svg || !this.scene) return;
    const boxes = new Map(this.scene.boxes.map((box) => [box.id, box]));
    this.button.textContent = "❚❚ Stop";
    this.button.setAttribute("aria-pressed", "true");
    // The running numbers are for the eye: a live region would talk without end.
    this.card.setAttribute("aria-live", "off");
    this.playing = play(this.svg, this.scene, (id) => {
      const node = boxes.get(id)?.node;
      if (node) this.tell(node);
    }, () => this.stop());
  }

  stop() {
    this.playing?.stop();
    this.playing = null;
    this.button.textContent = "▶ Send a batch through";
    this.button.setAttribute("aria-pressed", "false");
    this.card.setAttribute("aria-live", "polite");
  }

  /** @returns {HTMLTableElement | null} */
  table() {
    const { flow } = this;
    if (!flow) return null;
    return table("Every part, in the order a batch passes through them. Shapes leave out the batch.",
      ["part", "name", "in", "out", "parameters", "multiply-accumulates", "time"],
      [...flow.nodes.map((node) => [
        node.block === null ? node.title : `${node.title}, block ${node.block}`, node.name, node.in.map(shapeText).join(", ") || "–", outText(node),
        node.parameters.toLocaleString("en"), node.macs.toLocaleString("en"), milliseconds(node.ms),
      ]), ["between the parts: sums and reshapes", "–", "–", "–", "0", "–", milliseconds(flow.between)],
      ["all", "–", "–", "–", flow.parameters.toLocaleString("en"), flow.macs.toLocaleString("en"), milliseconds(flow.ms)]]);
  }

  /** @returns {{name: string, arrays: Record<string, {shape: number[], data: Float32Array}>} | null} */
  download() {
    const { flow } = this;
    if (!flow) return null;
    const column = (/** @type {"parameters" | "macs" | "ms"} */ key) =>
      ({ shape: [flow.nodes.length], data: Float32Array.from(flow.nodes, (node) => node[key]) });
    return { name: `${this.run.name}-flow`, arrays: { parameters: column("parameters"), macs: column("macs"), ms: column("ms") } };
  }
}

/** @param {string} name @param {string} value @param {number} [share] of the whole network */
function row(name, value, share) {
  const bar = h("span", { class: "flow-share", "aria-hidden": "true" }, h("span", { class: "flow-share-bar" }));
  if (share !== undefined) /** @type {HTMLElement} */ (bar.firstChild).style.inlineSize = `${Math.min(100, 100 * share).toFixed(1)}%`;
  return h("div", { class: "flow-row" }, h("dt", null, name),
    h("dd", null, value, share === undefined ? null : h("span", { class: "flow-percent" }, `${percent(share)} of all`), share === undefined ? null : bar));
}

/** x_t as it is written by hand. @param {Flow} flow @returns {Flow} */
const withSubscripts = (flow) => ({ ...flow, nodes: flow.nodes.map((node) => ({ ...node, title: node.title.replace("x_t", "xₜ") })) });

/** @param {HTMLElement} root @param {Run} run */
export function mount(root, run) {
  const section = new ShapeFlow(run);
  root.append(section.panel.root);
  onChange(["layer"], () => section.draw());
  onChange(WHERE, () => section.load());
  new ResizeObserver(() => {
    const width = section.stage.parentElement?.clientWidth ?? 0;
    if (width && Math.abs(width - section.width) > 4) section.draw();
  }).observe(section.panel.body);
  section.load();
}
