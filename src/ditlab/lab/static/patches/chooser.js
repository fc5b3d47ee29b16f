// Which image: a training example, a generated one, a drawing, or a file.

import { clear, h } from "../draw/dom.js";
import { Sketch } from "../draw/sketch.js";
import { arrays, at, encodeDrawing, exported, floats, query, upload } from "../page/api.js";
import { onChange, select, selection } from "../page/state.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/panel.js").Panel} Panel */
/** @typedef {"data" | "sample" | "draw" | "own"} Kind */

/** Up to this many values a drawing fits into the page's address. */
const IN_ADDRESS = 1024;

/** @type {[Kind, string][]} */
const KINDS = [["data", "Training example"], ["sample", "Generated"], ["draw", "Draw"], ["own", "Upload"]];

/** @returns {Kind} a file's pixels in the address are an upload like any other */
function kindOf() {
  const kind = selection.input.slice(0, selection.input.indexOf(":"));
  return kind === "file" ? "own" : /** @type {Kind} */ (kind);
}

/** @param {Run} run @param {Uint8Array<ArrayBuffer>} pixels */
async function usePixels(run, pixels) {
  const input = pixels.length <= IN_ADDRESS ? encodeDrawing(pixels) : await upload(run.id, pixels, "application/octet-stream");
  select({ input });
}

/** An uploaded file as the lab reads it; small ones are kept by their pixels, so that they outlive a restart. @param {Run} run @param {File} file */
async function useFile(run, file) {
  const input = await upload(run.id, file, file.type || "application/octet-stream");
  const [channels, height, width] = run.shape;
  if (channels * height * width > IN_ADDRESS) return select({ input });
  const { arrays: found } = await arrays(at(run.id, `/input${query({ input, t: 0, step: selection.step, weights: selection.weights })}`));
  const pixels = Uint8Array.from(floats(found.x0), (value) => Math.round(Math.min(255, Math.max(0, (value + 1) * 127.5))));
  select({ input: encodeDrawing(pixels, "file") });
}

/** @param {"data" | "sample"} kind @param {string} label @param {string} other the button's words */
function numbered(kind, label, other) {
  const id = `choose-${kind}`;
  const value = selection.input.startsWith(kind) ? selection.input.split(":")[1] : "0";
  const input = h("input", { id, type: "number", min: 0, step: 1, value, class: "short" });
  const use = (/** @type {number} */ number) => select({ input: `${kind}:${Math.max(0, number)}` });
  input.addEventListener("input", () => input.value !== "" && use(Math.trunc(input.valueAsNumber) || 0));
  const step = (/** @type {number} */ by) => {
    input.valueAsNumber = Math.max(0, (input.valueAsNumber || 0) + by);
    use(input.valueAsNumber);
  };
  return h("div", { class: "field field-inline" }, h("label", { for: id }, label),
    h("button", { type: "button", class: "tool", "aria-label": `Previous ${other}`, onclick: () => step(-1) }, "‹"), input,
    h("button", { type: "button", class: "tool", "aria-label": `Next ${other}`, onclick: () => step(1) }, "›"));
}

/** @param {Run} run @param {Panel} panel */
function fileField(run, panel) {
  const input = h("input", { id: "choose-file", type: "file", accept: "image/png,image/jpeg,image/webp" });
  input.addEventListener("change", () => {
    const file = input.files?.[0];
    if (file) panel.attempt(() => useFile(run, file), false);
  });
  return h("div", { class: "field" }, h("label", { for: "choose-file" }, "PNG, JPEG or WebP; cropped and scaled to the network's size"), input);
}

/**
 * @param {Run} run
 * @param {Panel} panel
 * @param {() => ArrayLike<number> | null} current the clean image shown now: drawing starts from it
 * @returns {HTMLElement}
 */
export function chooser(run, panel, current) {
  if (exported) return h("p", { class: "quiet" }, "The bar above lists the images in this file. Start ", h("code", null, "ditlab lab"), " to draw or use one of your own.");
  const details = h("div", { class: "chooser-details" });
  /** @type {Kind} */
  let shown = kindOf();
  // A latent is neither drawn nor a picture in a file.
  const drawable = [1, 3].includes(run.shape[0]);
  const kinds = KINDS.filter(([kind]) => (kind === "data" ? run.has_examples : drawable || kind === "sample"));
  const radios = kinds.map(([kind, label]) => {
    const id = `kind-${kind}`;
    const radio = h("input", { type: "radio", name: "kind", id, value: kind, checked: kind === shown, onchange: () => open(kind) });
    return h("span", { class: "segment" }, radio, h("label", { for: id }, label));
  });
  /** @type {Sketch | null} */
  let sketch = null;

  const contents = () => {
    if (shown === "data") return numbered("data", "Example", "example");
    if (shown === "sample") return numbered("sample", "Seed", "seed");
    if (shown === "own") return fileField(run, panel);
    sketch = new Sketch(run.shape, (pixels) => panel.attempt(() => usePixels(run, pixels), false));
    const now = current();
    if (now) sketch.load(now);
    return sketch.root;
  };
  const open = (/** @type {Kind} */ kind) => {
    shown = kind;
    sketch = null;
    clear(details).append(contents());
    if (kind === "data" || kind === "sample") select({ input: `${kind}:0` });
  };
  onChange(["input"], () => {
    const kind = kindOf();
    // A large drawing is handed over like a file; and a stroke must not rebuild the canvas under the pen.
    if (kind === shown || (kind === "own" && shown === "draw")) {
      const number = /** @type {HTMLInputElement | null} */ (details.querySelector("input[type=number]"));
      if (number && document.activeElement !== number) number.value = selection.input.split(":")[1];
      return;
    }
    shown = kind;
    const radio = /** @type {HTMLInputElement | null} */ (radios[kinds.findIndex(([name]) => name === kind)]?.firstChild);
    if (radio) radio.checked = true;
    clear(details).append(contents());
  });
  details.append(contents());
  return h("fieldset", { class: "chooser" }, h("legend", null, "The image"), h("div", { class: "segments" }, radios), details);
}
