// What every section shares: a heading, an introduction, the body, tools to take its numbers away, and a status line.

import { clear, h } from "../draw/dom.js";
import { sheet } from "../draw/sheet.js";
import { isAbort, isPixels } from "./api.js";
import { npz } from "./npz.js";
import { staleness, stillShown } from "./stale.js";
import { selection } from "./state.js";
import { Turn } from "./turns.js";

/** @typedef {import("./api.js").Tensor} Tensor */
/** @typedef {import("./api.js").Run} Run */
/**
 * @typedef {object} PanelOptions
 * @property {string} id
 * @property {string} title
 * @property {string | Node} intro
 * @property {() => string} [python] a snippet that computes the same; `snippet` below helps
 * @property {() => {name: string, arrays: Record<string, Tensor>} | null} [download] `name` without ".npz"
 * @property {() => HTMLCanvasElement | SVGSVGElement | null} [picture]
 * @property {(shown: import("./stale.js").Selection) => string} [caption] what the picture shows, beside the run and its step; of `rows` all of it
 * @property {boolean} [legends] are the legends of the panel those of its picture? (default true)
 * @property {() => HTMLTableElement | null} [table]
 * @property {boolean} [patient] is nothing asked before somebody comes near?
 * @property {boolean} [rows] do its parts say for themselves what is stale?
 */
/**
 * @typedef {object} Panel
 * @property {HTMLElement} root
 * @property {HTMLElement} body
 * @property {(text: string) => void} status
 * @property {(error: unknown, stale?: boolean) => void} fail shows an error (a request taken over by a newer one is none)
 * @property {(work: import("./turns.js").Work) => void} ask what the panel shows, in its turn: the newest question takes the
 *   place of the one before, and what is shown meanwhile is dimmed
 * @property {(work: () => Promise<void>, stale?: boolean) => Promise<boolean>} attempt runs it now: marks the panel busy, shows
 *   its error, and says whether it went well; `stale` (default): without it what the panel shows is not what is chosen
 * @property {() => boolean} pending is an answer still to come?
 * @property {() => boolean} near is somebody near?
 * @property {() => import("./stale.js").Selection | null} shown what was chosen when it last had its answer
 * @property {() => void} refresh what is shown changed: an open table follows
 */

/** @param {Blob} blob @param {string} name */
function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** @param {PanelOptions} options @param {Panel} panel @param {HTMLElement} code place for a snippet @param {HTMLElement} drawer place for the table */
function tools(options, panel, code, drawer) {
  const { id, python, download, picture, table } = options;
  const button = (/** @type {string} */ label, /** @type {(event: Event) => void} */ onclick, props = {}) =>
    h("button", { type: "button", class: "tool", onclick, ...props }, label);
  return h("div", { class: "tools", role: "group", "aria-label": `Take ${options.title} with you` },
    python && button("Copy Python", () => copy(python(), panel, code)),
    download && button("Download .npz", () => {
      const found = download();
      if (!found) return panel.status("Nothing to download yet.");
      save(new Blob([npz(found.arrays)], { type: "application/zip" }), `${found.name}.npz`);
      panel.status(`Saved ${found.name}.npz: ${Object.keys(found.arrays).join(", ")}.`);
    }),
    picture && button("Download .png", () => panel.attempt(() => savePicture(picture(), options, panel), false)),
    table && button("Show as table", (event) => toggleTable(/** @type {HTMLButtonElement} */ (event.currentTarget), panel, options, drawer),
      { "aria-expanded": false, "aria-controls": `${id}-drawer` }));
}

/** @param {string} text @param {Panel} panel @param {HTMLElement} code */
async function copy(text, panel, code) {
  clear(code);
  try {
    await navigator.clipboard.writeText(text);
    panel.status("Copied. It gives the same numbers in Python.");
  } catch {
    // No clipboard here (a file, or permission refused): show the text to be copied by hand.
    code.append(h("pre", { tabindex: 0 }, text));
    panel.status("The snippet is below.");
  }
}

/** @param {HTMLCanvasElement | SVGSVGElement | null} source @param {PanelOptions} options @param {Panel} panel */
async function savePicture(source, { id, title, caption, legends = true, rows = false }, panel) {
  const chosen = panel.shown() ?? selection;
  if (!source) return panel.status("Nothing to save yet.");
  const run = document.title.split(" · ")[0];
  const step = chosen.step === null ? "" : `step ${chosen.step.toLocaleString("en")}`;
  const words = [...(rows ? [] : [run, step]), caption?.(chosen)].filter(Boolean).join(", ");
  const canvas = await sheet(source, title, words, legends ? panel.body : null);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve));
  if (blob) save(/** @type {Blob} */ (blob), `${id}.png`);
  panel.status(`Saved ${id}.png.`);
}

/** @param {HTMLButtonElement} button @param {Panel} panel @param {PanelOptions} options @param {HTMLElement} drawer */
function toggleTable(button, panel, options, drawer) {
  const open = button.getAttribute("aria-expanded") !== "true";
  button.setAttribute("aria-expanded", String(open));
  button.textContent = open ? "Hide table" : "Show as table";
  clear(drawer);
  if (!open) return;
  drawer.append(h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${options.title} as a table` }));
  panel.refresh();
}

/**
 * How a panel asks for what it shows.
 * @param {PanelOptions} options
 * @param {HTMLElement} root
 * @param {HTMLElement} body
 * @param {(work: () => Promise<void>) => Promise<boolean>} attempt
 */
function asking({ rows, patient = false }, root, body, attempt) {
  /** What was chosen when the panel last had its answer. @type {import("./stale.js").Selection | null} */
  let shown = null;
  const waiting = h("p", { class: "waiting", hidden: true });
  const stale = staleness(rows ? waiting : body, () => {
    waiting.hidden = false;
    waiting.textContent = shown ? stillShown(shown) : "Waiting for the lab.";
  });
  const turn = new Turn(root, patient);
  root.classList.add("panel-new");
  const ask = (/** @type {import("./turns.js").Work} */ work) => {
    body.setAttribute("aria-busy", "true");
    stale.begin();
    turn.ask(async (signal) => {
      const chosen = { ...selection };
      const done = await attempt(() => work(signal));
      if (signal.aborted) return; // Another question took its place, or it is asked again later.
      if (done) shown = chosen;
      root.classList.remove("panel-new");
      stale.end();
      waiting.hidden = true;
      body.setAttribute("aria-busy", "false");
    });
  };
  return { ask, waiting, pending: () => turn.work !== null, near: () => Boolean(turn.near), shown: () => shown };
}

/**
 * A section's frame.
 * @param {PanelOptions} options
 * @returns {Panel}
 */
export function panel(options) {
  const { id, title, intro } = options;
  const body = h("div", { class: "panel-body" });
  const line = h("p", { class: "status", role: "status" });
  const trouble = h("p", { class: "trouble", role: "status" });
  const code = h("div");
  const drawer = h("div", { class: "drawer", id: `${id}-drawer` });
  const root = h("section", { class: "panel", id, "aria-labelledby": `${id}-title` });
  let running = 0;
  const status = (/** @type {string} */ text) => {
    line.textContent = text;
  };
  const fail = (/** @type {unknown} */ error, stale = true) => {
    if (isAbort(error)) return;
    trouble.textContent = error instanceof Error ? error.message : String(error);
    root.classList.toggle("panel-stale", stale);
  };
  const refresh = () => {
    const place = drawer.firstElementChild;
    if (place) place.replaceChildren(options.table?.() ?? h("p", null, "Nothing to show yet."));
  };
  const attempt = async (/** @type {() => Promise<void>} */ work, whole = true) => {
    running += 1;
    body.setAttribute("aria-busy", "true");
    let done = true;
    try {
      await work();
      if (whole) {
        trouble.textContent = "";
        root.classList.remove("panel-stale");
        refresh();
      }
    } catch (error) {
      done = false;
      fail(error, whole);
    }
    running -= 1;
    if (!running && !asks.pending()) body.setAttribute("aria-busy", "false");
    return done;
  };
  const asks = asking(options, root, body, attempt);
  /** @type {Panel} */
  const made = { root, body, status, fail, attempt, refresh, ...asks };
  root.append(h("h2", { id: `${id}-title` }, title), h("div", { class: "intro" }, typeof intro === "string" ? h("p", null, intro) : intro),
    asks.waiting, trouble, body, tools(options, made, code, drawer), line, code, drawer);
  return made;
}

/** A section that does not apply to this run says why. @param {string} id @param {string} title @param {string} why */
export function absent(id, title, why) {
  return h("section", { class: "panel panel-absent", id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), h("p", null, why));
}

/** @param {unknown} value */
export const literal = (value) => (typeof value === "string" ? JSON.stringify(value) : value === null ? "None" : String(value));

/** A drawn image in Python: its very pixels. @param {string} input @param {number[]} shape */
export function drawnPython(input, shape) {
  const text = input.slice(5);
  return [`import base64, numpy as np`, `pixels = np.frombuffer(base64.urlsafe_b64decode("${text}" + "=" * ${(4 - (text.length % 4)) % 4}), np.uint8).reshape(${shape.join(", ")})`];
}

/**
 * A Python snippet for what is chosen now: `snippet(run, "attention", {layer: 2}, '["map"]')`.
 * @param {Run} run
 * @param {string} method the Lens method
 * @param {Record<string, unknown>} [args] its own arguments (undefined is left out)
 * @param {string} [rest] written after the call
 * @param {boolean} [located] does it take input, t, label and cond? (default true)
 * @returns {string}
 */
export function snippet(run, method, args = {}, rest = "", located = true) {
  const { input, t, label, cond, step, weights } = selection;
  const drawn = located && isPixels(input);
  const all = { ...(located ? { input, t, label: label ?? undefined, cond: cond || undefined } : {}), ...args };
  const text = Object.entries(all).filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name}=${drawn && name === "input" ? "lens.own(pixels)" : name === "cond" ? value : literal(value)}`).join(", ");
  const when = step === null ? "" : `, step=${step}`;
  return [...(drawn ? drawnPython(input, run.shape) : []), "from ditlab.lab import Lens", `lens = Lens(${literal(run.path)}${when}, weights=${literal(weights)})`,
    `lens.${method}(${text})${rest}`, ""].join("\n");
}
