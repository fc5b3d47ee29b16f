// Whose turn it is: sections that are in sight ask the lab at once, the others one after the other when those have their
// answers. A question whose section was scrolled away gives way to one that is in sight, and is asked again later.

import { exported } from "./api.js";
import { lifetime, living } from "./lifetime.js";

/** @typedef {(signal: AbortSignal) => Promise<void>} Work shows its own errors */

/** @type {Set<Turn>} in the order of the page */
const turns = new Set();

export class Turn {
  /** @param {HTMLElement} node @param {boolean} patient is nothing asked before somebody comes near? */
  constructor(node, patient) {
    this.patient = patient;
    /** @type {boolean | null} is somebody near? null: not known yet */
    this.near = exported || null;
    /** @type {Work | null} what is yet to be asked, or being asked */
    this.work = null;
    /** @type {AbortController | null} */
    this.running = null;
    turns.add(this);
    const watch = new IntersectionObserver((entries) => {
      this.near = entries[entries.length - 1].isIntersecting;
      if (!this.near && this.patient) this.drop();
      goOn();
    }, { rootMargin: "200px" });
    watch.observe(node);
    lifetime()?.addEventListener("abort", () => {
      watch.disconnect();
      turns.delete(this);
    }, { once: true });
  }

  /** The section's one question: it takes the place of the one before. @param {Work} work */
  ask(work) {
    this.drop();
    this.work = work;
    goOn();
  }

  /** Stop asking; the work is kept. */
  drop() {
    this.running?.abort();
    this.running = null;
  }

  async start() {
    const control = new AbortController();
    this.running = control;
    await this.work?.(living(control.signal));
    if (this.running !== control) return; // dropped, or taken over
    this.running = null;
    this.work = null;
    goOn();
  }
}

function goOn() {
  const all = [...turns];
  if (all.some(({ near }) => near === null)) return;
  const here = all.filter(({ near, work }) => near && work);
  if (here.length) all.forEach((turn) => turn.near || turn.drop());
  for (const turn of here) if (!turn.running) void turn.start();
  if (here.length || all.some(({ running }) => running)) return;
  void all.find(({ work, patient }) => work && !patient)?.start();
}
