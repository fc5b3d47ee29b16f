// What does each patch look at? The chosen patch's own row (or column) of the attention map, over the image.

import { legend } from "../draw/color.js";
import { clear, figure, h } from "../draw/dom.js";
import { listed, percent } from "../draw/format.js";
import { Grid } from "../draw/grid.js";
import { slider } from "../draw/player.js";
import { answerable, arrays, at, floats, query } from "../page/api.js";
import { chosenPatch, inputName, loadInput, patchName } from "../page/inputs.js";
import { panel, snippet } from "../page/panel.js";
import { WHERE, onChange, select, selection, where, whichWeights } from "../page/state.js";
import { cross } from "./cross.js";
import { chosenHead, chosenLayer, loadMap, placeName, view } from "./maps.js";
import { numbersTable } from "./numbers.js";
import { summary } from "./summary.js";
import { Thumbnails } from "./thumbnails.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/api.js").AttentionLayer} AttentionLayer */
/** @typedef {import("../page/api.js").Tensor} Tensor */
/** @typedef {import("./maps.js").AttentionMap} AttentionMap */
/**
 * @typedef {object} Scene what is shown now
 * @property {AttentionLayer} layer
 * @property {Record<string, Tensor>} input
 * @property {AttentionMap} attention
 */

/** @param {import("../page/api.js").Run} run @param {AbortSignal} signal @returns {Promise<Scene>} */
async function load(run, signal) {
  const layer = chosenLayer(run);
  const [input, attention] = await Promise.all([loadInput(run, signal), loadMap(run, layer, signal)]);
  return { layer, input: input.arrays, attention };
}

/** The chosen patch's view: from memory, or, of a map too large to hold, asked for. @param {Run} run @param {Scene} scene @param {number} patch @param {AbortSignal} signal */
async function viewOf(run, scene, patch, signal) {
  const { layer, attention } = scene;
  if (attention.pool === 1) return view(attention, patch, selection.direction);
  const path = at(run.id, `/attention/row${query({ ...where(), layer: layer.layer, head: chosenHead(layer), query: patch, direction: selection.direction })}`);
  return floats((await arrays(path, { signal })).arrays.row);
}

/** From whom, to whom. */
function directionChoice() {
  const options = /** @type {["from" | "to", string][]} */ ([["from", "what this patch looks at"], ["to", "who looks at this patch"]]);
  const radios = options.map(([value, label]) => {
    const id = `direction-${value}`;
    const radio = h("input", { type: "radio", name: "direction", id, value, checked: selection.direction === value, onchange: () => select({ direction: value }) });
    return h("span", { class: "segment" }, radio, h("label", { for: id }, label));
  });
  onChange(["direction"], () => {
    options.forEach(([value], i) => (/** @type {HTMLInputElement} */ (radios[i].firstChild).checked = value === selection.direction));
  });
  return h("fieldset", { class: "inline" }, h("legend", null, "Show"), h("div", { class: "segments" }, radios));
}

/** The two pictures: the image to click on, and attention over it. */
class Pictures {
  /** @param {Run} run @param {(patch: number) => string} describe */
  constructor(run, describe) {
    const [rows, cols] = chosenLayer(run).grid;
    this.cols = cols;
    this.alpha = 0.8;
    const options = {
      rows, cols, selectOnMove: true,
      describe: (/** @type {number} */ row, /** @type {number} */ col) => describe(row * this.cols + col),
      onHover: (/** @type {{row: number, col: number} | null} */ cell) => this.hover(cell),
      onSelect: (/** @type {number} */ row, /** @type {number} */ col) => select({ patch: row * this.cols + col }),
    };
    this.image = new Grid({ ...options, label: "The image: choose a patch", readout: false, gap: cols <= 16 ? 2 : 0 });
    // One read-out for both.
    this.heat = new Grid({ ...options, label: "Attention of the chosen patch over the image", readout: false, gap: cols <= 16 ? 2 : 0, output: this.image.output });
    this.legend = h("div");
    /** @type {Scene | null} */
    this.scene = null;
    /** @type {Float32Array | null} */
    this.row = null;
    /** Whose row it is, and in which direction. */
    this.patch = 0;
    this.direction = selection.direction;
  }

  /** Both pictures point at the same patch. @param {{row: number, col: number} | null} cell */
  hover(cell) {
    for (const grid of [this.image, this.heat]) {
      grid.hovered = cell;
      grid.draw();
    }
    this.heat.say();
  }

  /** @param {Scene} scene @param {Float32Array} row @param {number} patch */
  show(scene, row, patch) {
    const [rows, cols] = scene.layer.grid;
    this.cols = cols;
    this.row = row;
    this.patch = patch;
    this.direction = selection.direction;
    if (scene !== this.scene) {
      this.scene = scene;
      this.image.resize(rows, cols);
      this.image.setImage({ shape: scene.input.x.shape, data: floats(scene.input.x) });
      this.heat.setImage({ shape: scene.input.x0.shape, data: floats(scene.input.x0) });
    }
    const high = Math.max(...row);
    this.heat.setValues(row, { rows, cols, alpha: this.alpha, high, format: percent });
    const cell = { row: Math.floor(patch / cols), col: patch % cols };
    for (const grid of [this.image, this.heat]) {
      grid.mark([{ ...cell, color: "query" }]);
      grid.moveTo(cell.row, cell.col);
    }
    this.heat.say();
    clear(this.legend).append(legend({ scale: "sequential", low: "0", high: percent(high), label: "attention" }));
  }

  /** How much of the image shines through. @param {number} alpha */
  blend(alpha) {
    this.alpha = alpha;
    this.heat.look.alpha = alpha;
    this.heat.draw();
  }
}

const INTRO = "In every attention layer each patch asks all patches, itself included, and mixes what they answer. Click a patch, or move with the arrow keys. Brighter patches get more of its attention.";

/** What the shares of a patch add up to, and what "patch" means where nothing is cut into patches. @param {Run} run */
function intro(run) {
  const [rows, cols] = run.attention[0].grid;
  const tokens = run.condition_tokens;
  const sum = tokens.length
    ? ` In this network the conditions (${listed(tokens)}) are tokens too, and every patch gives them a part of its attention: its shares over the picture add up to less than 100 %, and the numbers below say where the rest goes.`
    : " The shares of one patch add up to 100 %.";
  const channels = run.shape[0] > 3 ? ` The first three of the ${run.shape[0]} channels of x are shown, as colours. Brightness is the mean over all channels, clipped to −1 and 1, so “on the object” need not mean a visible object.` : "";
  return run.patches ? INTRO + sum + channels : `${INTRO}${sum} In this network a “patch” is one pixel of the ${rows} × ${cols} feature map on which its attention works.`;
}

/** @param {HTMLElement} root @param {Run} run */
export function mount(root, run) {
  /** @type {Scene | null} */
  let scene = null;
  const describe = (/** @type {number} */ patch) => {
    if (!scene || !pictures.row) return "";
    const chosen = pictures.patch;
    const share = percent(pictures.row[patch]);
    const [from, to] = [chosen, patch].map((one) => patchName(one, pictures.cols));
    if (patch === chosen) return `${from} gives ${share} of its attention to itself`;
    return pictures.direction === "from" ? `${from} gives ${share} of its attention to ${to}` : `${to} gives ${share} of its attention to ${from}`;
  };
  const caption = (/** @type {Scene} */ { layer }, chosen = selection) => {
    const name = patchName(pictures.patch, layer.grid[1]);
    return `${pictures.direction === "from" ? `What ${name} looks at` : `Who looks at ${name}`}: ${placeName(layer, run.attention.indexOf(layer), chosen)}`;
  };
  const pictures = new Pictures(run, describe);
  const thumbs = new Thumbnails(run);
  const numbers = numbersTable(run);
  const reads = cross(run);
  // Of an imported network, or where the images were moved, there are no training images to measure.
  const overMany = run.has_examples && answerable(at(run.id, `/attention/summary${query(whichWeights())}`)) ? summary(run) : null;
  const args = () => ({ layer: chosenLayer(run).layer, head: chosenHead(chosenLayer(run)) });
  const frame = panel({
    id: "attention", title: "What does each patch look at?", intro: intro(run),
    python: () => snippet(run, "attention_row", { ...args(), query: scene ? chosenPatch(scene.attention.mass) : 0, direction: selection.direction }, '["row"]'),
    download: () => scene && { name: `${run.name}-attention-layer-${args().layer}-head-${args().head}`, arrays: {
      map: { shape: [scene.attention.size, scene.attention.size], data: scene.attention.map }, row: { shape: [...scene.layer.grid], data: pictures.row ?? new Float32Array() } } },
    picture: () => pictures.heat.canvas,
    caption: (shown) => (scene ? `${caption(scene, shown).replace("W", "w")}, ${inputName(shown.input)}` : ""),
    table: () => scene && pictures.heat.table(caption(scene), { colName: (col) => `column ${col}` }),
  });

  /** From memory, unless the map is too large: this is what a click waits for. */
  const repaint = async (/** @type {AbortSignal} */ signal) => {
    // Another run may have been chosen meanwhile: then this section is about to go.
    if (!scene || selection.run !== run.id) return;
    const now = scene;
    const patch = chosenPatch(now.attention.mass);
    const row = await viewOf(run, now, patch, signal);
    if (now !== scene) return;
    pictures.show(now, row, patch);
    numbers.show(now, patch);
    thumbs.show(patch).catch(frame.fail).then(() => overMany?.start());
  };
  const render = () => frame.ask(async (signal) => {
    scene = await load(run, signal); // of which a click finds all in memory
    await repaint(signal);
  });

  const blend = slider({ label: "Attention over image", min: 0, max: 1, step: 0.05, value: pictures.alpha, format: (v) => `${Math.round(100 * v)} %` }, (v) => pictures.blend(v));
  frame.body.append(
    h("div", { class: "attention-row" },
      h("div", { class: "attention-pictures" },
        figure("The image", "xₜ: choose a patch", pictures.image.root),
        figure("Its attention", "over x₀", pictures.heat.root),
        h("div", { class: "attention-words" }, pictures.heat.output, pictures.legend)),
      h("div", { class: "attention-side" }, directionChoice(), blend.root, figure("All layers and heads", "each on its own scale", thumbs.root))),
    numbers.root, reads?.root ?? "", overMany?.root ?? "");
  root.append(frame.root);
  onChange([...WHERE, "layer", "head", "patch", "direction"], render);
  render();
}
