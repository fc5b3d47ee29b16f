// A board of switches laid out like the network: a row for each block, from the first at the top to the last.

import { clear, h } from "../draw/dom.js";
import { slider } from "../draw/player.js";
import { choices } from "../page/api.js";
import { change, has, inWords, isKnown, part, read, toggle, words } from "./edits.js";

/** @typedef {import("../page/api.js").Run} Run */

/** How far patches of a layer may see, at most so many choices. */
const FARTHEST = 4;

/** The board, its time and the list of what is changed; all follow the selection when `show` is called. */
export class Switches {
  /** @param {Run} run */
  constructor(run) {
    this.run = run;
    /** @type {Map<string, HTMLButtonElement>} */
    this.buttons = new Map();
    /** @type {HTMLSelectElement[]} */
    this.looks = [];
    this.board = h("div", { class: "board", role: "group", "aria-label": "Switches, a row for each block; arrow keys move between them" }, run.attention.map((_, i) => this.row(i)));
    this.board.addEventListener("keydown", (event) => this.move(event));
    this.time = choices() ? null : timeControl(run);
    this.list = h("ul", { class: "changed-list", "aria-label": "What is changed" });
    this.back = h("button", { type: "button", class: "tool", onclick: () => change(run, []) }, "Undo all changes");
    this.root = h("div", { class: "switches" }, run.attention.length > 0 && this.board, this.time?.root, h("div", { class: "changed" }, this.list, this.back));
    this.show();
  }

  /** @param {number} layer */
  row(layer) {
    const { run } = this;
    const heads = Array.from({ length: run.attention[layer].heads }, (_, head) => this.button(`head:${layer}.${head}`, String(head), "head"));
    const block = run.network === "dit" ? this.button(`block:${layer}`, `Block ${layer}`, "block") : h("span", { class: "board-name" }, `Attention ${layer}`);
    return h("div", { class: "board-row", dataset: { layer } }, block,
      h("div", { class: "board-attention" }, run.has_gates && this.button(`gate:${layer}.attn`, "attention", "attention"), h("span", { class: "board-heads" }, heads)),
      run.has_gates && this.button(`gate:${layer}.mlp`, "MLP", "mlp"), this.look(layer));
  }

  /** @param {string} word @param {string} text @param {string} kind */
  button(word, text, kind) {
    const held = choices()?.changes.edits;
    const made = h("button", { type: "button", role: "switch", disabled: Boolean(held && !held.includes(word)), "aria-checked": true, "aria-label": part(this.run, word), class: `switch switch-${kind}`,
      tabindex: this.buttons.size ? -1 : 0, onclick: () => toggle(this.run, word), onfocus: () => this.rest(made) }, text);
    this.buttons.set(word, made);
    return made;
  }

  /** Where Tab comes back to. @param {HTMLButtonElement} button */
  rest(button) {
    for (const other of this.buttons.values()) other.tabIndex = other === button ? 0 : -1;
  }

  /** Arrow keys: along a row, and to the nearest switch of the row above or below. @param {KeyboardEvent} event */
  move(event) {
    const from = /** @type {HTMLElement} */ (event.target);
    const rows = [...this.board.children].map((row) => /** @type {HTMLButtonElement[]} */ ([...row.querySelectorAll("button")]));
    const y = rows.findIndex((row) => row.some((button) => button === from));
    if (y < 0) return;
    const x = rows[y].findIndex((button) => button === from);
    const to = { ArrowRight: rows[y][x + 1], ArrowLeft: rows[y][x - 1], ArrowDown: rows[y + 1]?.[Math.min(x, rows[y + 1].length - 1)],
      ArrowUp: rows[y - 1]?.[Math.min(x, rows[y - 1].length - 1)], Home: rows[y][0], End: rows[y][rows[y].length - 1] }[event.key];
    if (!to) return;
    event.preventDefault();
    to.focus();
  }

  /** How a layer looks: as it learned, everywhere alike, or near. @param {number} layer */
  look(layer) {
    const { run } = this;
    const far = run.patches ? Math.min(FARTHEST, Math.max(...run.patches.grid) - 2) : -1;
    const near = Array.from({ length: far + 1 }, (_, r) => [`local:${layer}.${r}`, r === 0 ? "looks at itself only" : `looks at most ${r} away`]);
    const held = choices()?.changes.edits;
    const options = [["", "looks as trained"], [`uniform:${layer}`, "looks at all equally"], ...near].filter(([word]) => !word || !held || held.includes(word));
    const list = h("select", { class: "board-look", "aria-label": `How block ${layer} looks`, onchange: () => {
      const others = words().filter((word) => !(["uniform", "local"].includes(read(word).kind) && read(word).place === layer));
      change(run, list.value ? [...others, list.value] : others);
    } }, options.map(([value, text]) => h("option", { value }, text)));
    this.looks.push(list);
    return list;
  }

  show() {
    for (const [word, button] of this.buttons) button.setAttribute("aria-checked", String(!has(word)));
    for (const row of /** @type {HTMLElement[]} */ ([...this.board.children])) {
      row.classList.toggle("board-skipped", has(`block:${row.dataset.layer}`));
      row.classList.toggle("board-deaf", has(`gate:${row.dataset.layer}.attn`));
    }
    for (const list of this.looks) list.value = [...list.options].map((option) => option.value).find((word) => word && has(word)) ?? "";
    this.time?.show();
    const changed = words();
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    const entry = [...this.list.querySelectorAll("button")].findIndex((one) => one === focused);
    clear(this.list).append(...(changed.length ? changed.map((word) => h("li", null, h("button", { type: "button", class: "tool changed-one", dataset: { word }, "aria-label": `Put back: ${inWords(this.run, word)}`, onclick: () => toggle(this.run, word) },
      inWords(this.run, word), h("span", { "aria-hidden": "true" }, " ✕")))) : [h("li", { class: "quiet" }, "Nothing is changed.")]));
    this.back.disabled = !changed.length;
    // What was pressed is gone: a keyboard goes on from the next entry, or from the part that was put back.
    const left = this.list.querySelectorAll("button");
    if (entry >= 0) (left[Math.min(entry, left.length - 1)] ?? this.control(focused?.dataset.word ?? "")).focus();
    else if (focused === this.back && this.back.disabled) this.control("").focus();
  }

  /** What changes a part; without a word, where Tab comes to the board, or the time of a network that has none. @param {string} word @returns {HTMLElement} */
  control(word) {
    const { kind, place } = word ? read(word) : { kind: "", place: 0 };
    const look = ["uniform", "local"].includes(kind) ? this.looks[place] : undefined;
    const rest = [...this.buttons.values()].find((button) => button.tabIndex === 0);
    return this.buttons.get(word) ?? look ?? (kind === "time" ? this.time?.box : rest) ?? this.time?.box ?? this.back;
  }
}

/** Hold the time the network is told. @param {Run} run */
function timeControl(run) {
  const held = () => words().find((word) => read(word).kind === "time");
  const tell = (/** @type {number | null} */ t) => change(run, [...words().filter((word) => word !== held()), ...(t === null ? [] : [`time:${Number(t.toFixed(2))}`])]);
  const range = slider({ label: "Time the network is told", min: 0, max: 1, step: 0.05, value: 0.5, format: (t) => t.toFixed(2) }, (t) => tell(t));
  const box = h("input", { type: "checkbox", id: "hold-time", onchange: () => tell(box.checked ? Number(range.input.valueAsNumber * 0.05) : null) });
  return {
    box,
    root: h("div", { class: "hold" }, h("div", { class: "hold-box" }, box, h("label", { for: "hold-time" }, "Tell the network one fixed time, whatever t is")), range.root),
    show: () => {
      const word = held();
      box.checked = word !== undefined;
      range.root.hidden = !box.checked;
      if (word) range.set(read(word).place);
    },
  };
}

/** The changes of an address, as far as this run has them. @param {Run} run */
export const settleEdits = (run) => change(run, words().filter((word) => isKnown(run, word)));
