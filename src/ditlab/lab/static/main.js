// The page: which run, its bar of choices, its sections.

import { mount as mountAttention } from "./attention/attention.js";
import { mount as mountMatrix } from "./attention/matrix.js";
import { mount as mountChange } from "./change/change.js";
import { mount as mountDenoise } from "./denoise/denoise.js";
import { clear, h } from "./draw/dom.js";
import { nearest } from "./draw/math.js";
import { mount as mountFlow } from "./flow/flow.js";
import { mount as mountGates } from "./gates/gates.js";
import { mountLosses } from "./gates/losses.js";
import { at, choices, decodeDrawing, exported, forget, isPixels, json, part } from "./page/api.js";
import { bar } from "./page/bar.js";
import { scalarsOf } from "./page/conditions.js";
import { land } from "./page/land.js";
import { lifetime, renew } from "./page/lifetime.js";
import { forgetNews, liveBadge } from "./page/live.js";
import { absent } from "./page/panel.js";
import { listRuns } from "./page/run_list.js";
import { staleness } from "./page/stale.js";
import { forgetListeners, fromAddress, onChange, select, selection } from "./page/state.js";
import { themeChooser } from "./page/theme.js";
import { mount as mountPatches } from "./patches/patches.js";
import { mount as mountCompare } from "./runs/runs.js";
import { tour } from "./tour/tour.js";

/** @typedef {import("./page/api.js").Run} Run */
/** @typedef {import("./page/api.js").SectionId} SectionId */

/** @type {{id: SectionId, title: string, short: string, mount: (root: HTMLElement, run: Run) => void}[]} */
const SECTIONS = [
  { id: "flow", title: "Shape flow", short: "Shapes", mount: mountFlow },
  { id: "patches", title: "From image to tokens", short: "Patches", mount: mountPatches },
  { id: "attention", title: "What does each patch look at?", short: "Attention", mount: mountAttention },
  { id: "matrix", title: "The full N × N matrix", short: "Matrix", mount: mountMatrix },
  { id: "change", title: "Switch parts off", short: "Change", mount: mountChange },
  { id: "gates", title: "Watch the gates open", short: "Gates", mount: mountGates },
  { id: "denoise", title: "Denoise", short: "Denoise", mount: mountDenoise },
  { id: "compare", title: "Compare", short: "Compare", mount: mountCompare },
];

const guide = tour();
/** What is below while another run is on its way. */
const old = staleness(place("main"));

const NETWORKS = { dit: "a diffusion transformer", unet: "a U-Net", mlp: "an MLP", own: "a registered network" };
const PROCESSES = { flow: "flow matching, which learns the path from noise to data", ddpm: "DDPM, which learns to remove noise step by step",
  meanflow: "MeanFlow, which learns the mean velocity over any span of the path from noise to data",
  own: "a registered process" };
const TARGETS = { velocity: "the velocity, how xₜ changes with the time t", eps: "the noise ε in xₜ", x0: "the clean data x₀", v: "v, a mixture of noise and data" };

const MEAN = "the mean velocity of xₜ over a span of time; unless said otherwise the span is 0, which gives the velocity itself";

/** @param {string} id @returns {HTMLElement} */
function place(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`the page lacks its #${id}`);
  return node;
}

/** The network in one sentence. @param {Run} run */
function describe(run) {
  const what = run.data === "external" ? `data of ${run.shape.join(" × ")} values that are not on this machine` : run.data === "points" ? "points in the plane" : run.data === "own" ? `a data set of its own, samples of ${run.shape.join(" × ")} values,` : run.data === "latents" ? `latents of ${run.shape.join(" × ")} values` : `${run.data} of ${run.shape[1]} × ${run.shape[2]} pixels`;
  const cut = run.patches
    ? ` It sees an image as ${run.patches.tokens} patches of ${run.patches.size} × ${run.patches.size} pixels, in ${run.attention.length} blocks with ${run.attention[0]?.heads ?? 0} attention heads each.`
    : "";
  const kind = run.network === "mlp" ? "an MLP, a multilayer perceptron," : NETWORKS[run.network];
  if (run.step === null) return `${run.name} is ${kind} of ${run.parameters.toLocaleString("en")} parameters, to be trained on ${what}. It has no checkpoint yet. This is what it has recorded so far; the rest appears with the first checkpoint.`;
  return `${run.name} is ${kind} of ${run.parameters.toLocaleString("en")} parameters, trained on ${what} with ${PROCESSES[run.process]}. It predicts ${run.solvers.includes("average") ? MEAN : TARGETS[run.target]}.${cut}`;
}

/** @param {Run} run @param {number | null} label −1 is the null label */
const hasLabel = (run, label) => label !== null && run.num_classes !== null && label >= -1 && label < run.num_classes;

/** Is it an image by its form, and a drawing of this run's size? @param {Run} run @param {string} input */
function isInput(run, input) {
  if (input.startsWith("data:") && !run.has_examples) return false;
  if (!isPixels(input)) return /^(data:\d{1,9}|sample:\d{1,9}|own:[\w-]+)$/.test(input);
  try {
    return decodeDrawing(input).length === run.shape.reduce((a, b) => a * b, 1);
  } catch {
    return false;
  }
}

/** Choose what is there where the address says nothing, or something this run does not have. @param {Run} run */
function settle(run) {
  const held = choices();
  const layers = run.attention.length;
  const layer = selection.layer < layers && selection.layer >= 0 ? selection.layer : Math.floor(layers / 2);
  const heads = run.attention[layer]?.heads ?? 0;
  const steps = run.checkpoints;
  select({
    run: run.id,
    layer,
    step: selection.step !== null && steps.includes(selection.step) ? selection.step : run.step,
    head: selection.head === "mean" || selection.head < heads ? selection.head : "mean",
    // A file holds answers for each image's own label and for averaged weights.
    label: held || !hasLabel(run, selection.label) ? null : selection.label,
    cond: held ? "" : scalarsOf(run, selection.cond),
    weights: held || selection.weights !== "raw" ? "ema" : "raw",
    input: isInput(run, selection.input) ? selection.input : run.has_examples ? "data:0" : "sample:0",
  });
  if (!held) return;
  const { input, t } = held;
  if (input.length && !input.includes(selection.input)) select({ input: input[0] });
  if (t.length && !t.includes(selection.t)) select({ t: t[nearest(t, selection.t)] });
}

/** @param {HTMLElement} main @param {Run} run */
function mountSections(main, run) {
  // Before the first checkpoint there is one section to look at.
  const first = (/** @type {SectionId} */ id) => Number(run.step === null && id === "gates");
  for (const { id, title, mount } of SECTIONS.filter((one) => !part || one.id === part).sort((a, b) => first(b.id) - first(a.id))) {
    const why = run.sections[id];
    // What a run wrote down of itself is shown without gates, too.
    if (why && id === "gates" && (run.last_loss !== null || run.step === null)) {
      mountLosses(main, run, why);
      continue;
    }
    if (why) {
      main.append(absent(id, title, why));
      continue;
    }
    try {
      mount(main, run);
    } catch (error) {
      // One section's failure must not take the others with it.
      main.append(absent(id, title, error instanceof Error ? error.message : String(error)));
    }
  }
}

/** @param {string} id */
async function show(id) {
  /** @type {[Run, import("./page/api.js").RunSummary[]]} */
  const [run, runs] = await Promise.all([json(at(id, "")), listRuns()]);
  if (selection.run !== id) return; // Another one was chosen meanwhile.
  renew();
  forgetListeners();
  forgetNews();
  const asked = selection.step;
  settle(run);
  if (asked !== null && selection.step !== asked) notice(`${run.name} has no checkpoint at step ${asked.toLocaleString("en")}; ${selection.step === null ? "it has none yet" : `this page shows step ${selection.step.toLocaleString("en")}`}.`);
  await null; // Those changes are announced now, before there is anybody to draw twice.
  document.title = `${run.name} · ditlab lab`;
  place("title").textContent = `Inside ${NETWORKS[run.network]}`;
  place("lead").textContent = describe(run);
  place("lead").removeAttribute("role");
  old.end();
  const main = clear(place("main"));
  clear(place("bar")).append(bar(run, runs, liveBadge(run, () => void reload(id))));
  clear(place("contents")).append(h("ul", null, SECTIONS.map(({ id: section, short }) =>
    h("li", null, h("a", { href: `#${section}`, class: run.sections[section] ? "off" : null, onclick: jump }, short)))));
  mountSections(main, run);
  markSections();
  if (!part) guide.follow(run);
  onChange(["run"], () => change(run));
}

/** The run that is shown has weights now, and had none. @param {string} id */
async function reload(id) {
  forget(at(id, ""));
  select({ layer: -1, input: "data:0" });
  await show(id).catch(fail);
  document.getElementById("choose-step")?.focus();
}

/** Go to a section. In an exported file the address's fragment holds the selection: there without it. @param {Event} event */
function jump(event) {
  if (exported) event.preventDefault();
  const id = /** @type {HTMLAnchorElement} */ (event.currentTarget).hash.slice(1);
  setTimeout(() => land(() => document.getElementById(id))); // after what the browser does with the click
}

/** Let the links say which section is read. */
function markSections() {
  const links = /** @type {HTMLAnchorElement[]} */ ([...place("contents").querySelectorAll("a")]);
  const mark = () => {
    const begun = links.filter(({ hash }) => (document.getElementById(hash.slice(1))?.getBoundingClientRect().top ?? Infinity) < innerHeight * 0.4);
    const now = begun[begun.length - 1];
    for (const link of links) {
      if ((link === now) === link.hasAttribute("aria-current")) continue;
      if (link === now) link.setAttribute("aria-current", "location");
      else link.removeAttribute("aria-current");
      const list = link.closest("ul"); // Where links do not fit beside each other, this one is brought into sight.
      if (link === now) list?.scrollTo({ left: link.offsetLeft - list.clientWidth / 2, behavior: "instant" });
    }
  };
  addEventListener("scroll", mark, { passive: true, signal: lifetime() });
}

/** What lies under the bar is not seen: nothing is scrolled there. On narrow screens only a part of the bar stays. */
function keepClear() {
  const live = /** @type {HTMLElement | null} */ (document.querySelector(".choices-live"));
  const covered = place("stay").offsetHeight || place("contents").offsetHeight + (live?.offsetHeight ?? 0);
  document.documentElement.style.scrollPaddingTop = `${covered + 12}px`;
}

/** Say what the address asked for and is not here. @param {string} text */
function notice(text) {
  place("notice").append(`${text} `);
  place("notice").hidden = false;
}

/** Another run was chosen: the image and the time stay, what belongs to the old network goes. @param {Run} before */
async function change(before) {
  renew();
  forgetListeners();
  clear(place("notice")).hidden = true;
  old.begin();
  const opening = setTimeout(() => (place("lead").textContent = `Opening the run. Until it is ready, the page below still shows ${before.name}.`), 200);
  select({ step: null, label: null, head: "mean", layer: -1, patch: null, key: null, train: null, at: null, a: "", b: "", edits: "" });
  if (/^(own|draw|file):/.test(selection.input)) select({ input: "data:0" });
  onChange(["run"], () => change(before));
  await show(selection.run).catch((error) => {
    fail(error);
    // The sections of the run before no longer follow what is chosen.
    old.end();
    clear(place("main"));
    clear(place("contents"));
  });
  clearTimeout(opening);
  document.getElementById("choose-run")?.focus();
}

/** @param {unknown} error */
function fail(error) {
  const text = error instanceof Error ? error.message : String(error);
  place("lead").textContent = text;
  place("lead").setAttribute("role", "alert");
}

async function begin() {
  document.documentElement.classList.toggle("part", part !== null);
  place("theme").append(themeChooser());
  place("lead").after(guide.button);
  place("stay").after(guide.card);
  for (const node of [place("stay"), document.documentElement]) new ResizeObserver(keepClear).observe(node);
  const runs = await listRuns();
  if (!runs.length) throw new Error("There are no runs here yet. Train one first, for instance with `ditlab train circles`.");
  const wanted = fromAddress();
  const found = runs.find((run) => run.id === wanted.run) ?? runs[0];
  // An address that names no layer means the middle one.
  select({ layer: -1, ...wanted, run: found.id });
  if (wanted.run && wanted.run !== found.id) notice(`There is no run “${wanted.run}” here (it may have been moved, renamed or damaged). This page shows ${found.name}.`);
  await show(found.id);
  if (exported) return;
  const there = () => document.getElementById(location.hash.slice(1));
  if (location.hash) land(there);
  addEventListener("hashchange", () => land(there));
}

begin().catch(fail);
