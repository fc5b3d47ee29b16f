// What is chosen: one selection for the whole page, kept in its address so that a reload or a link shows the same.

import { exported } from "./api.js";

/**
 * @typedef {object} Selection
 * @property {string} run
 * @property {number | null} step the checkpoint
 * @property {string} weights "ema" or "raw"
 * @property {string} input "data:I", "sample:SEED", "own:ID", or by its pixels "draw:…" or "file:…"
 * @property {number} t 0 is data, 1 is noise
 * @property {number | null} label null: the input's own
 * @property {string} cond scalars that the network is told, such as '{"age":30}'; "" is the input's own
 * @property {number} layer
 * @property {number | "mean"} head
 * @property {number | null} patch the query patch; null: the brightest
 * @property {"from" | "to"} direction
 * @property {number | null} key the other patch
 * @property {number | null} train the training step of the gates
 * @property {number | null} at where the denoisers stand, a time of their own
 * @property {string} a settings of the left denoiser
 * @property {string} b settings of the right denoiser
 * @property {string} c the columns of the comparison
 * @property {string} cs what the columns of the comparison share
 * @property {string} curves how curves of a loss are drawn, such as "log_20"
 * @property {string} edits what is changed in the network, such as "head:2.1 block:3"
 */
/** @typedef {keyof Selection} Key */

/** @type {Selection} */
const current = {
  run: "", step: null, weights: "ema", input: "data:0", t: 0.3, label: null, cond: "", layer: 0, head: "mean", patch: null,
  direction: "from", key: null, train: null, at: null, a: "", b: "", c: "", cs: "", curves: "", edits: "",
};

const NUMBERS = new Set(["step", "t", "label", "layer", "patch", "key", "train", "at"]);
const KEYS = /** @type {Key[]} */ (Object.keys(current));

/** The selection. Read it freely; change it through `select`. @type {Readonly<Selection>} */
export const selection = current;

/** @type {{keys: Set<Key>, fn: (changed: Set<Key>) => void}[]} */
let listeners = [];
/** @type {Set<Key>} */
let changed = new Set();
/** @type {ReturnType<typeof setTimeout> | undefined} */
let writing;

/** @param {string} key @param {string} text @returns {any} undefined for nonsense */
function parse(key, text) {
  if (key === "head" && text === "mean") return "mean";
  if (key === "head" || NUMBERS.has(key)) {
    const number = Number(text);
    if (text === "" || !Number.isFinite(number)) return undefined;
    return key === "t" || key === "at" ? Math.min(1, Math.max(0, number)) : Math.trunc(number);
  }
  if (key === "direction") return text === "to" ? "to" : "from";
  return text;
}

/** The part of the page's address that holds the selection: a file opened from disk has no query string of its own. */
const address = () => (exported ? location.hash.slice(1) : location.search);

/** What the page's address says, as far as it says anything. @returns {Partial<Selection>} */
export function fromAddress() {
  /** @type {Record<string, any>} */
  const found = {};
  const params = new URLSearchParams(address());
  for (const key of KEYS) {
    const value = params.has(key) ? parse(key, params.get(key) ?? "") : undefined;
    if (value !== undefined) found[key] = value;
  }
  return found;
}

function write() {
  if (location.protocol === "about:") return; // A page within a notebook has no address of its own.
  const params = new URLSearchParams();
  for (const key of KEYS) {
    if (current[key] !== null && current[key] !== "") params.set(key, String(current[key]));
  }
  const text = params.toString().replaceAll("%3A", ":");
  history.replaceState(null, "", exported ? `#${text}` : `?${text}${location.hash}`);
}

function notify() {
  const keys = changed;
  changed = new Set();
  for (const listener of [...listeners]) {
    if ([...keys].some((key) => listener.keys.has(key))) listener.fn(keys);
  }
}

/**
 * Change part of the selection. Listeners run once, right after the current task, however many calls there were.
 * @param {Partial<Selection>} partial
 */
export function select(partial) {
  const before = changed.size;
  for (const key of /** @type {Key[]} */ (Object.keys(partial))) {
    if (partial[key] === undefined || Object.is(current[key], partial[key])) continue;
    /** @type {any} */ (current)[key] = partial[key];
    changed.add(key);
  }
  if (changed.size === before) return;
  if (before === 0) queueMicrotask(notify);
  // Browsers refuse a page that rewrites its address too often, as a dragged slider would.
  clearTimeout(writing);
  writing = setTimeout(write, 200);
}

/**
 * Call `fn` after any of these keys changed.
 * @param {Key[]} keys
 * @param {(changed: Set<Key>) => void} fn
 * @returns {() => void} stops it
 */
export function onChange(keys, fn) {
  const listener = { keys: new Set(keys), fn };
  listeners.push(listener);
  return () => {
    listeners = listeners.filter((other) => other !== listener);
  };
}

/** Forget all listeners: another run's sections are about to be mounted. */
export function forgetListeners() {
  listeners = [];
}

/** The selection's part that names weights. @returns {{step: number | null, weights: string}} */
export const whichWeights = () => ({ step: current.step, weights: current.weights });

/**
 * The parameters that name weights, image, time, label and scalars: for `query({...where(), layer: 2})`.
 * @returns {{input: string, t: number, label: number | null, cond: string | null, step: number | null, weights: string}}
 */
export const where = () => ({ input: current.input, t: current.t, label: current.label, cond: current.cond || null, ...whichWeights() });

/** The keys whose change makes answers to `where()` stale. @type {Key[]} */
export const WHERE = ["input", "t", "label", "cond", "step", "weights"];
