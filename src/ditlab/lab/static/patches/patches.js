// From image to tokens: the image cut into patches, and the row of numbers each patch becomes.

import { legend } from "../draw/color.js";
import { clear, figure, h } from "../draw/dom.js";
import { Grid } from "../draw/grid.js";
import { floats } from "../page/api.js";
import { className } from "../page/conditions.js";
import { decoded, valuesOf } from "../page/decoded.js";
import { brightness, chosenPatch, inputName, loadInput, patchName } from "../page/inputs.js";
import { panel, snippet } from "../page/panel.js";
import { WHERE, onChange, select, selection } from "../page/state.js";
import { chooser } from "./chooser.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/api.js").Arrays} Arrays */
/** @typedef {import("../page/panel.js").Panel} Panel */
/** @typedef {NonNullable<Run["patches"]>} Cut */

const POSITIONS = /** @type {Record<string, string>} */ ({ learned: "a learned position", sincos: "a position in sines and cosines" });

/** @param {Run} run @param {Cut} cut */
function intro(run, cut) {
  const [C, H, W] = run.shape;
  const values = C * cut.size ** 2;
  return h("div", null,
    h("p", null, `The image is cut into ${cut.grid[0]} × ${cut.grid[1]} patches of ${cut.size} × ${cut.size} pixels. Each patch becomes one token, a row of numbers; ${POSITIONS[run.positions ?? ""] ?? "a position"} is added to tell where it was.`),
    h("p", { class: "fact" }, `A convolution with kernel and stride ${cut.size} does it in one go. It is the same as a reshape and a linear layer: `,
      h("code", null, `(${C}, ${H}, ${W}) → (${cut.tokens}, ${values})`), ` by reshape, then `, h("code", { class: "shape" }, `(${cut.tokens}, ${values}) → (${cut.tokens}, D)`),
      ` by one matrix shared by all patches.`));
}

/** With a true minus sign. @param {number} value @param {number} digits */
const signed = (value, digits) => value.toFixed(digits).replace("-", "−");

/** How wide a cell is for its height: the table is wide and low for few tokens, less so for many. @param {number} rows @param {number} cols */
const shapeOf = (rows, cols) => (Math.max(2, 16 / Math.sqrt(rows)) * rows) / cols;

/** The section's canvases and what they show. @param {Cut} cut */
function views(cut) {
  const [rows, cols] = cut.grid;
  /** @type {{answer: Arrays | null, hovered: number | null, mass: Float32Array | null}} */
  const state = { answer: null, hovered: null, mass: null };
  const still = (/** @type {string} */ label) => new Grid({ rows: 1, cols: 1, label, maxWidth: 320 });
  const pictures = { x0: still("Clean image"), noise: still("Noise"), x: still("Noisy image, what the network sees") };
  const hover = (/** @type {number | null} */ patch) => {
    state.hovered = patch;
    mark();
  };
  const image = new Grid({
    rows, cols, gap: Math.max(1, Math.round(28 / cols)), label: "The noisy image in patches", selectOnMove: true,
    describe: (row, col) => `${patchName(row * cols + col, cols)} becomes token ${row * cols + col}`,
    onHover: (cell) => hover(cell && cell.row * cols + cell.col),
    onSelect: (row, col) => select({ patch: row * cols + col }),
  });
  const tokenGrid = (/** @type {string} */ label, /** @type {"embedded" | "tokens"} */ name) => new Grid({
    rows: cut.tokens, cols: 1, label, cellAspect: shapeOf(cut.tokens, 1),
    describe: (row, col) => {
      const tensor = state.answer?.arrays[name];
      return tensor ? `token ${row}, feature ${col}: ${signed(floats(tensor)[row * tensor.shape[1] + col], 3)}` : "";
    },
    onHover: (cell) => hover(cell && cell.row), onSelect: (row) => select({ patch: row }),
  });
  const tables = { embedded: tokenGrid("Tokens after the patch embedding", "embedded"), tokens: tokenGrid("Tokens with positions added", "tokens") };

  /** Outline the chosen patch, and the one under pointer or keyboard, in all three pictures. */
  function mark() {
    const chosen = state.mass ? chosenPatch(state.mass) : null;
    const { hovered } = state;
    const width = state.answer?.arrays.tokens?.shape[1] ?? 1;
    const at = (/** @type {number} */ patch) => ({ row: Math.floor(patch / cols), col: patch % cols });
    if (chosen !== null && hovered === null) image.moveTo(at(chosen).row, at(chosen).col);
    image.say();
    image.mark([...(chosen === null ? [] : [/** @type {const} */ ({ ...at(chosen), color: "query" })]), ...(hovered === null ? [] : [/** @type {const} */ ({ ...at(hovered), color: "hover" })])]);
    for (const grid of Object.values(tables)) {
      const row = (/** @type {number} */ patch, /** @type {"query" | "hover"} */ color) => ({ row: patch, col: 0, cols: width, color });
      if (chosen !== null && hovered === null) grid.moveTo(chosen, grid.active.col);
      grid.say();
      grid.mark([...(chosen === null ? [] : [row(chosen, "query")]), ...(hovered === null ? [] : [row(hovered, "hover")])]);
    }
  }
  return { state, pictures, image, tables, mark };
}

/** @param {ReturnType<typeof views>} view @param {Arrays} answer @param {Cut} cut @param {HTMLElement} scale */
function show(view, answer, cut, scale) {
  const { arrays: found } = answer;
  view.state.answer = answer;
  view.state.mass = brightness(found.x0, cut.grid);
  for (const name of /** @type {const} */ (["x0", "noise", "x"])) {
    if (found[name]) view.pictures[name].setImage({ shape: found[name].shape, data: floats(found[name]) });
  }
  view.image.setImage({ shape: found.x.shape, data: floats(found.x) });
  // One scale for both, so that what the positions add can be seen.
  const both = ["embedded", "tokens"].flatMap((name) => (found[name] ? Array.from(floats(found[name])) : []));
  const high = quantile(both.map(Math.abs), 0.99) || 1;
  for (const name of /** @type {const} */ (["embedded", "tokens"])) {
    if (!found[name]) continue;
    const [rows, cols] = found[name].shape;
    view.tables[name].options.cellAspect = shapeOf(rows, cols);
    view.tables[name].setValues(floats(found[name]), { rows, cols, scale: "diverging", low: -high, high });
    view.tables[name].shape();
  }
  clear(scale).append(legend({ scale: "diverging", low: signed(-high, 2), high: signed(high, 2), label: "feature value" }));
  view.mark();
}

/** @param {number[]} values @param {number} share */
function quantile(values, share) {
  const sorted = Float32Array.from(values).sort();
  return sorted[Math.floor(share * (sorted.length - 1))] ?? 0;
}

/** How x_t was mixed. @param {Run} run @param {Record<string, string>} meta of the answer */
function mixture(run, meta) {
  const label = run.num_classes === null ? "" : Number(meta.label) === run.num_classes ? "; label: none" : `; label: ${className(run, Number(meta.label))}`;
  if (meta.drawn) {
    const [few, whole] = meta.drawn.split(" in place of ");
    return `x₀ was drawn in fewer steps (${few}) than this network is made for (${whole}), which would take minutes; xₜ = ${Number(meta.a).toFixed(2)} · x₀ + ${Number(meta.s).toFixed(2)} · noise${label}`;
  }
  // Generated images are shown in the state nearest to the chosen time: its own time is the true one.
  if (selection.input.startsWith("sample:")) return `xₜ is the state at t = ${Number(meta.t).toFixed(2)} of its trajectory, from this noise to the generated image x₀${label}`;
  const [a, s] = [Number(meta.a), Number(meta.s)]; // the path's own coefficients, whatever its shape
  const rule = run.noise_path === "linear" ? "xₜ = (1 − t) · x₀ + t · noise" : "xₜ = a(t) · x₀ + s(t) · noise";
  return `${rule} = ${a.toFixed(2)} · x₀ + ${s.toFixed(2)} · noise${label}`;
}

/** @param {HTMLElement} root @param {Run} run */
export function mount(root, run) {
  const cut = /** @type {Cut} */ (run.patches);
  const view = views(cut);
  const frame = panel({
    id: "patches", title: "From image to tokens", intro: intro(run, cut),
    python: () => snippet(run, "input", {}, '["tokens"]'),
    download: () => view.state.answer && { name: `${run.name}-input`, arrays: view.state.answer.arrays },
    picture: () => view.tables.tokens.canvas,
    caption: ({ t, input }) => `tokens with positions, one row for each patch; t = ${t.toFixed(2)}, ${inputName(input)}`,
    table: () => view.tables.tokens.table(`Tokens with positions, t = ${selection.t.toFixed(2)}`, { rowName: (row) => `token ${row}` }),
  });
  const seen = decoded(run, ["x₀", "xₜ", "predicted x₀"]);
  const formula = h("p", { class: "mixture" });
  const scale = h("div");
  const shapes = frame.root.querySelector(".shape");

  const render = () => frame.ask(async (signal) => {
    const answer = await loadInput(run, signal);
    formula.textContent = mixture(run, answer.meta);
    const width = answer.arrays.tokens?.shape[1];
    const values = run.shape[0] * cut.size ** 2;
    if (shapes && width) shapes.textContent = `(${cut.tokens}, ${values}) → (${cut.tokens}, ${width})`;
    show(view, answer, cut, scale);
    seen?.show(valuesOf(answer.arrays, ["x0", "x", "denoised"]));
  });
  const clean = () => {
    const x0 = view.state.answer?.arrays.x0;
    return x0 ? floats(x0) : null;
  };
  frame.body.append(
    h("div", { class: "trio-and-chooser" }, chooser(run, frame, clean), h("div", { class: "trio" }, figure("x₀", "clean", view.pictures.x0.root),
      figure("noise", "", view.pictures.noise.root), figure("xₜ", "what the network sees", view.pictures.x.root), formula, seen?.root ?? "")),
    h("div", { class: "patches-row" }, figure("Patches of xₜ", "", view.image.root), h("div", { class: "token-maps" },
      figure("Embedded", "one row for each patch", view.tables.embedded.root), figure("With positions", "what enters the first block", view.tables.tokens.root), scale)));
  root.append(frame.root);
  onChange(WHERE, render);
  onChange(["patch"], view.mark);
  render();
}
