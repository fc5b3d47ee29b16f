// A run that is still training: what the lab tells of it as it happens, and the badge that says how far it is.

import { announce } from "../draw/announce.js";
import { clear, h } from "../draw/dom.js";
import { number } from "../draw/format.js";
import { at, exported, forget } from "./api.js";
import { select, selection } from "./state.js";

/** @typedef {import("./api.js").Run} Run */
/**
 * What has changed: only that is there. The first news of a connection hold all.
 * @typedef {object} News
 * @property {boolean} [training] is a process at work?
 * @property {number} [steps] how far it is to go
 * @property {number | null} [step] how far it is
 * @property {number | null} [loss]
 * @property {number | null} [seconds_left]
 * @property {number[]} [checkpoints]
 * @property {number[]} [previews]
 * @property {number | null} [recorded] the last step whose gates were recorded
 * @property {[number, number][]} [losses] steps and losses that are new
 * @property {boolean} [cut] steps that were told of are no longer there
 */

/** Seconds until a connection that was refused is tried again; one that broke the browser itself renews. */
const AGAIN = 5;

/** @type {((news: News) => void)[]} */
let listeners = [];
/** @type {(() => void) | null} */
let stop = null;

/** Hear what is new of the run that is shown, until another is. @param {(news: News) => void} fn */
export function onNews(fn) {
  listeners.push(fn);
}

/** Another run's sections are about to be mounted. */
export function forgetNews() {
  stop?.();
  stop = null;
  listeners = [];
}

/**
 * Follow a run. A page in the background lets go: a browser has six connections to a server and no more.
 * @param {Run} run
 * @param {(lost: boolean) => void} onLost
 */
function connect(run, onLost) {
  let known = run.last_loss ?? -1;
  /** @type {EventSource | null} */
  let source = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const close = () => {
    clearTimeout(timer);
    source?.close();
    source = null;
  };
  const open = () => {
    close();
    source = new EventSource(at(run.id, `/live?after=${known}`));
    source.addEventListener("message", (event) => {
      known = Number(event.lastEventId);
      onLost(false);
      const news = JSON.parse(event.data);
      for (const fn of [...listeners]) fn(news);
    });
    source.addEventListener("error", () => {
      onLost(true);
      if (source?.readyState === EventSource.CLOSED) timer = setTimeout(open, AGAIN * 1000);
    });
  };
  const turn = () => (document.hidden ? close() : open());
  document.addEventListener("visibilitychange", turn);
  turn();
  return () => {
    document.removeEventListener("visibilitychange", turn);
    close();
  };
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const steps = (/** @type {number} */ step) => step.toLocaleString("en");

/** @param {News} now all that is known */
function progress({ training, step, steps: all, loss, seconds_left: left }) {
  const where = step ? `step ${steps(step)} of ${steps(all ?? 0)}` : "just begun";
  if (!training) return step === all ? `Training has ended at step ${steps(step ?? 0)}` : `Training has stopped at ${where}`;
  return [`training: ${where}`, loss === null || loss === undefined ? "" : `loss ${number(loss)}`, left ? `${duration(left)} left` : ""].filter(Boolean).join(", ");
}

/**
 * The badge, which shows itself once the run is seen training.
 * @param {Run} run
 * @param {() => void} reload shows the run anew: it has weights now, and had none
 */
export function liveBadge(run, reload) {
  const words = h("span", { class: "live-words" });
  const offer = h("span", { class: "live-offer" });
  const root = h("p", { class: "live", hidden: true }, h("span", { class: "live-dot", "aria-hidden": "true" }), words, offer);
  if (exported) return root;
  /** @type {News} */
  let now = {};
  let [seen, lost] = [false, false];

  const paint = () => {
    root.hidden = !seen;
    root.classList.toggle("live-on", Boolean(now.training) && !lost);
    words.textContent = lost ? "The lab does not answer; trying again" : progress(now);
  };
  const propose = (/** @type {number} */ step) => {
    const text = `Step ${steps(step)} is there: show it`;
    clear(offer).append(h("button", { type: "button", class: "tool", onclick: () => {
      clear(offer);
      if (run.step === null) reload();
      else select({ step });
      document.getElementById("choose-step")?.focus();
    } }, text));
    announce(`The checkpoint of step ${steps(step)} is ready`);
  };
  onNews((news) => {
    const before = now;
    now = { ...now, ...news };
    seen ||= Boolean(now.training);
    if (news.checkpoints) {
      const newest = Math.max(...news.checkpoints, -1);
      const fresh = newest > Math.max(...run.checkpoints, -1);
      run.checkpoints = news.checkpoints;
      forget(at(run.id, ""));
      forget("/api/runs"); // It says of each run which checkpoint is its newest.
      if (fresh && newest !== selection.step) propose(newest);
      seen ||= fresh;
    }
    if (before.training && !now.training) announce(progress(now));
    paint();
  });
  forgetNewsLater(connect(run, (gone) => {
    lost = gone;
    if (seen) paint();
  }));
  return root;
}

/** @param {() => void} disconnect */
function forgetNewsLater(disconnect) {
  stop?.();
  stop = disconnect;
}
