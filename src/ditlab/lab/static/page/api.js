// The page's one door to the numbers: the local server's answers, or those embedded in an exported file.

import { inLane } from "./lanes.js";
import { living } from "./lifetime.js";

/**
 * @typedef {Float32Array | Uint8Array | BigInt64Array} Data
 * @typedef {{shape: number[], data: Data}} Tensor
 * @typedef {{arrays: Record<string, Tensor>, meta: Record<string, string>}} Arrays
 * @typedef {"flow" | "patches" | "attention" | "matrix" | "change" | "gates" | "denoise" | "compare"} SectionId
 * @typedef {{layer: number, heads: number, grid: [number, number], tokens: number}} AttentionLayer
 * @typedef {{id: string, name: string, data: string, network: string, process: string, shape: number[],
 *   step: number | null}} RunSummary
 * @typedef {{id: string, name: string, path: string, data: "circles" | "points" | "digits" | "images" | "latents" | "external" | "own", has_examples: boolean,
 *   network: "dit" | "unet" | "mlp" | "own", process: "flow" | "ddpm" | "meanflow" | "own",
 *   noise_path: "linear" | "cosine" | "discrete" | "own", target: "velocity" | "eps" | "x0" | "v",
 *   shape: number[], checkpoints: number[], step: number | null, last_loss: number | null, last_recording: number | null, num_classes: number | null,
 *   classes: string[] | null, scalars: {name: string, unit: string, mean: number, std: number}[],
 *   patches: {size: number, grid: [number, number], tokens: number} | null, attention: AttentionLayer[],
 *   condition_tokens: string[], cross_tokens: string[],
 *   positions?: "learned" | "sincos" | null, has_gates: boolean, parameters: number, macs: number | null, latents: {why: string | null} | null,
 *   sampling: {steps: number, solver: string, guidance: number}, draws: number, solvers: string[], max_steps: number,
 *   sections: Record<SectionId, string | null>}} Run
 * @typedef {{solver: string, steps: number, seed: number, guidance: number, label: number | null, cond?: string}} Setting
 * @typedef {{edits: string[], input: string[], t: number[]}} Changes one edit at a time, for these images and times
 * @typedef {{input: string[], t: number[], settings: Setting[], changes: Changes}} Choices
 * @typedef {{type: "json" | "arrays" | "image", body: any}} Embedded
 * @typedef {{signal?: AbortSignal}} Options
 */

const embeddedNode = document.getElementById("embedded");
/** @type {{paths: Record<string, Embedded>, choices?: Choices, section?: SectionId} | null} */
const embedded = embeddedNode ? JSON.parse(embeddedNode.textContent ?? "null") : null;

/** Is this page a file with its answers inside (true) or served by the lab (false)? */
export const exported = embedded !== null;

/** The one section that a page within a notebook shows; null for all. @type {SectionId | null} */
export const part = embedded?.section ?? null;

/** The path of all runs' endpoints. @param {string} run @param {string} rest */
export const at = (run, rest) => `/api/runs/${encodeURIComponent(run)}${rest}`;

/**
 * A query string with its keys in alphabetical order; undefined and null are left out.
 * @param {Record<string, string | number | boolean | null | undefined>} params
 * @returns {string} "?a=1&b=2", or "" for no parameters
 */
export function query(params) {
  const kept = Object.keys(params).sort().filter((key) => params[key] !== undefined && params[key] !== null);
  const text = kept.map((key) => `${key}=${encodeURIComponent(String(params[key]))}`).join("&");
  return text && `?${text}`;
}

/** The values an exported file holds answers for; null when the lab itself answers. @returns {Choices | null} */
export function choices() {
  return embedded ? embedded.choices ?? { input: [], t: [], settings: [], changes: { edits: [], input: [], t: [] } } : null;
}

/** @param {unknown} error @returns {boolean} whether it only says that a newer request took over */
export const isAbort = (error) => error instanceof DOMException && error.name === "AbortError";

/**
 * One panel's stream of requests: each call aborts the signal given out before; all end with the sections at hand.
 * @returns {() => AbortSignal}
 */
export function latest() {
  /** @type {AbortController | null} */
  let current = null;
  return () => {
    current?.abort();
    current = new AbortController();
    return living(current.signal);
  };
}

// --- safetensors -----------------------------------------------------------------------------------------------------

/** @type {Record<string, (bytes: ArrayBuffer) => Data>} */
const TYPES = {
  F32: (bytes) => new Float32Array(bytes),
  U8: (bytes) => new Uint8Array(bytes),
  I64: (bytes) => new BigInt64Array(bytes),
};

/** @param {ArrayBuffer} buffer @returns {Arrays} */
function decode(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  /** @type {Arrays} */
  const answer = { arrays: {}, meta: header.__metadata__ ?? {} };
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [start, end] = entry.data_offsets;
    // A copy: the offsets need not be multiples of the element size.
    const data = TYPES[entry.dtype]?.(buffer.slice(8 + length + start, 8 + length + end));
    if (!data) throw new Error(`the answer holds an array of an unknown type, ${entry.dtype}`);
    answer.arrays[name] = { shape: entry.shape, data };
  }
  return answer;
}

/** An array's numbers as floats, whatever type they travelled in. @param {Tensor | undefined} tensor @returns {Float32Array} */
export function floats(tensor) {
  if (!tensor) throw new Error("the answer lacks an array this section needs");
  const { data } = tensor;
  if (data instanceof Float32Array) return data;
  return data instanceof BigInt64Array ? Float32Array.from(data, Number) : Float32Array.from(data);
}

// --- asking the server -----------------------------------------------------------------------------------------------

/** @param {number} seconds @param {AbortSignal | undefined} signal @returns {Promise<void>} */
function wait(seconds, signal) {
  return new Promise((resolve, reject) => {
    const leave = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", leave);
      resolve();
    }, seconds * 1000);
    signal?.addEventListener("abort", leave, { once: true });
  });
}

/** @param {Response} response @returns {Promise<Error & {status: number}>} */
async function failure(response) {
  const body = await response.json().catch(() => null);
  const message = body?.error ?? `the lab answered ${response.status}`;
  return Object.assign(new Error(message), { status: response.status });
}

/**
 * Fetch; a busy server (503) is asked again, at most three times.
 * @param {string} path
 * @param {RequestInit} options
 * @returns {Promise<Response>}
 */
async function ask(path, options) {
  for (let attempt = 0; ; attempt += 1) {
    const response = await fetch(path, options).catch((error) => {
      throw isAbort(error) ? error : new Error("the lab does not answer: is `ditlab lab` still running?");
    });
    if (response.ok) return response;
    if (response.status !== 503 || attempt >= 3) throw await failure(response);
    const pause = Number(response.headers.get("Retry-After")) || 1;
    await wait(Math.min(pause, 10), options.signal ?? undefined);
  }
}

/**
 * Hand an image to the lab.
 * @param {string} run
 * @param {BodyInit} body raw uint8 pixels, or an image file
 * @param {string} type "application/octet-stream" or the image's type
 * @returns {Promise<string>} its name as an input, "own:ID"
 */
export async function upload(run, body, type) {
  if (exported) throw new Error("this file holds ready answers only: start `ditlab lab` to use an image of your own");
  const response = await ask(at(run, "/inputs"), { method: "POST", body, headers: { "Content-Type": type } });
  return (await response.json()).input;
}

/**
 * Pictures (n,3,h,w) of latents, by the run's own autoencoder.
 * @param {string} run
 * @param {Float32Array<ArrayBuffer>} latents
 * @param {AbortSignal} signal
 * @returns {Promise<Tensor>}
 */
export async function decodeLatents(run, latents, signal) {
  const path = at(run, "/pictures");
  const response = await inLane(path, signal, () => ask(path, { method: "POST", body: latents, headers: { "Content-Type": "application/octet-stream" }, signal }));
  return decode(await response.arrayBuffer()).arrays.pictures;
}

// --- small images of one's own: kept in the page's address as their pixels, posted when first asked for ------------------

/** @type {Map<string, Promise<string>>} */
const posted = new Map();

/** Is it an image by its pixels: drawn, or from a file? @param {string} input */
export const isPixels = (input) => /^(draw|file):/.test(input);

/** @param {Uint8Array} pixels @param {"draw" | "file"} [kind] where they are from @returns {string} "draw:…" or "file:…" */
export function encodeDrawing(pixels, kind = "draw") {
  const text = btoa(String.fromCharCode(...pixels));
  return `${kind}:${text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}

/** @param {string} input "draw:…" or "file:…" @returns {Uint8Array<ArrayBuffer>} */
export function decodeDrawing(input) {
  const text = atob(input.slice(5).replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(text, (char) => char.charCodeAt(0));
}

/** @param {string} path @returns {string | null} the drawing a path asks about */
function drawing(path) {
  const input = new URL(path, "http://lab").searchParams.get("input");
  return input && isPixels(input) ? input : null;
}

/** Put the lab's own name for a drawing in its place. @param {string} path @param {string} input */
async function named(path, input) {
  const url = new URL(path, "http://lab");
  const run = decodeURIComponent(url.pathname.split("/")[3] ?? "");
  const key = `${run} ${input}`;
  if (!posted.has(key)) {
    const reply = upload(run, decodeDrawing(input), "application/octet-stream");
    reply.catch(() => posted.delete(key));
    posted.set(key, reply);
  }
  const params = Object.fromEntries(url.searchParams);
  return { path: url.pathname + query({ ...params, input: await posted.get(key) }), key };
}

/** @param {string} path @param {AbortSignal} signal @returns {Promise<Response>} */
async function get(path, signal) {
  const input = drawing(path);
  if (!input) return ask(path, { signal });
  const first = await named(path, input);
  try {
    return await ask(first.path, { signal });
  } catch (error) {
    if (/** @type {any} */ (error).status !== 404) throw error;
    posted.delete(first.key); // The lab keeps only the latest images: hand it over again.
    return ask((await named(path, input)).path, { signal });
  }
}

// --- recent answers, shared between panels ---------------------------------------------------------------------------

const KEPT = 240;
const KEPT_BYTES = 96e6;

/** @typedef {{answer: Promise<any>, control: AbortController, waiting: number, done: boolean, bytes: number}} Entry */
/** @type {Map<string, Entry>} */
const recent = new Map();

function forgetOldest() {
  let bytes = 0;
  for (const entry of recent.values()) bytes += entry.bytes;
  for (const [path, entry] of recent) {
    if (recent.size <= KEPT && bytes <= KEPT_BYTES) return;
    if (!entry.done) continue;
    bytes -= entry.bytes;
    recent.delete(path);
  }
}

/** Ask the lab anew the next time: what it said of this path has changed. @param {string} path */
export const forget = (path) => recent.delete(path);

/**
 * @param {string} path
 * @param {(response: Response) => Promise<{value: any, bytes: number}>} read
 * @returns {Entry}
 */
function start(path, read) {
  const control = new AbortController();
  /** @type {Entry} */
  const entry = { answer: Promise.resolve(), control, waiting: 0, done: false, bytes: 0 };
  entry.answer = inLane(path, control.signal, () => get(path, control.signal).then(read)).then(({ value, bytes }) => {
    entry.done = true;
    entry.bytes = bytes;
    forgetOldest();
    return value;
  });
  entry.answer.catch(() => recent.get(path) === entry && recent.delete(path));
  recent.set(path, entry);
  return entry;
}

/**
 * Join the request for a path, or start it. It is aborted once nobody waits for it any more.
 * @param {string} path
 * @param {AbortSignal | undefined} signal
 * @param {(response: Response) => Promise<{value: any, bytes: number}>} read
 * @returns {Promise<any>}
 */
function shared(path, signal, read) {
  if (signal?.aborted) return Promise.reject(signal.reason);
  let entry = recent.get(path);
  if (entry) recent.delete(path), recent.set(path, entry); // Used again: now the newest.
  else entry = start(path, read);
  const joined = entry;
  joined.waiting += 1;
  return new Promise((resolve, reject) => {
    const leave = () => {
      joined.waiting -= 1;
      reject(signal?.reason);
      if (joined.waiting > 0 || joined.done) return;
      recent.delete(path);
      joined.control.abort();
    };
    signal?.addEventListener("abort", leave, { once: true });
    joined.answer.then(resolve, reject).finally(() => signal?.removeEventListener("abort", leave));
  });
}

// --- answers inside an exported file ---------------------------------------------------------------------------------

/** One spelling for paths that mean the same. @param {string} path */
function canonical(path) {
  const url = new URL(path, "http://lab");
  const params = Object.fromEntries(url.searchParams);
  for (const key of Object.keys(params)) {
    const number = Number(params[key]);
    if (params[key] !== "" && Number.isFinite(number)) params[key] = String(number);
  }
  return decodeURIComponent(url.pathname) + query(params);
}

const byPath = new Map(Object.entries(embedded?.paths ?? {}).map(([path, entry]) => [canonical(path), entry]));

/** Can this be asked at all? A file holds some answers, the lab has all. @param {string} path */
export const answerable = (path) => !exported || byPath.has(canonical(path));

/** @param {string} path @returns {Embedded} */
function lookUp(path) {
  const entry = byPath.get(canonical(path));
  if (!entry) throw new Error("not in this file: it holds ready answers for the choices in the bar only; start `ditlab lab` for all");
  return entry;
}

/** @param {string} text base64 @returns {ArrayBuffer} */
const bytesOf = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0)).buffer;

// --- what sections call ----------------------------------------------------------------------------------------------

/**
 * A JSON answer.
 * @param {string} path
 * @param {Options} [options]
 * @returns {Promise<any>}
 */
export async function json(path, { signal } = {}) {
  if (exported) return lookUp(path).body;
  return shared(path, signal, async (response) => ({ value: await response.json(), bytes: 2000 }));
}

/** @type {WeakMap<Embedded, Arrays>} */
const decoded = new WeakMap();

/**
 * An answer of arrays. Do not write into them: they are shared.
 * @param {string} path
 * @param {Options} [options] `signal` from `latest()`: the newest request of a panel aborts the one before
 * @returns {Promise<Arrays>}
 */
export async function arrays(path, { signal } = {}) {
  if (exported) {
    const entry = lookUp(path);
    const answer = decoded.get(entry) ?? decode(bytesOf(entry.body));
    decoded.set(entry, answer);
    return answer;
  }
  return shared(path, signal, async (response) => {
    const buffer = await response.arrayBuffer();
    return { value: decode(buffer), bytes: buffer.byteLength };
  });
}

/** The address of a picture, for an <img>. @param {string} path @returns {string} */
export const picture = (path) => (exported ? `data:image/png;base64,${lookUp(path).body}` : path);
