// A guided tour: a card that goes from section to section, says what is there, and what to try. It remembers the step.

import { clear, h } from "../draw/dom.js";
import { nearest } from "../draw/math.js";
import { choices } from "../page/api.js";
import { land } from "../page/land.js";
import { select } from "../page/state.js";
import { stepsOf } from "./steps.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("./steps.js").Step} Step */

const STORE = "ditlab-tour";
/** Where storage is forbidden, as it may be in a file opened from disk, the step is kept as long as the page is open. */
let kept = "";

function remembered() {
  try {
    return localStorage.getItem(STORE) ?? kept;
  } catch {
    return kept;
  }
}

/** @param {string} id */
function remember(id) {
  kept = id;
  try {
    localStorage.setItem(STORE, id);
  } catch {
    // Then only until the page closes.
  }
}

/** Choose what a step shows, as far as it can be chosen here: a file holds some times only. @param {Partial<import("../page/state.js").Selection>} wanted */
function choose(wanted) {
  const times = choices()?.t;
  if (wanted.t !== undefined && times?.length) wanted.t = times[nearest(times, wanted.t)];
  select(wanted);
}

class Tour {
  /** @param {HTMLElement} place of the card @param {HTMLButtonElement} button */
  constructor(place, button) {
    this.place = place;
    this.button = button;
    /** @type {Run | null} */
    this.run = null;
    /** @type {Step[]} */
    this.steps = [];
    this.index = 0;
    this.open = false;
    button.addEventListener("click", () => (this.open ? this.close() : this.start()));
    place.addEventListener("keydown", (event) => event.key === "Escape" && this.close());
  }

  /** Another run is shown. @param {Run} run */
  follow(run) {
    this.run = run;
    this.steps = stepsOf(run);
    this.index = Math.max(0, this.steps.findIndex(({ id }) => id === remembered()));
    this.button.hidden = !this.steps.length;
    if (this.open && this.steps.length) this.draw();
    else if (this.open) this.close();
    this.label();
  }

  label() {
    this.button.setAttribute("aria-expanded", String(this.open));
    this.button.textContent = this.open ? "End the tour" : this.index > 0 ? `Continue the tour (${this.index + 1} of ${this.steps.length})` : "New here? Take the tour";
  }

  start() {
    this.open = true;
    this.go(this.index);
  }

  /** @param {number} index */
  go(index) {
    this.index = index;
    remember(this.steps[index].id);
    if (this.run) choose(this.steps[index].scene?.(this.run) ?? {});
    this.draw();
    this.place.querySelector("h2")?.focus({ preventScroll: true });
    land(() => this.spot());
  }

  end() {
    this.index = 0;
    remember("");
    this.close();
  }

  close() {
    this.open = false;
    this.unmark();
    clear(this.place).hidden = true;
    document.body.classList.remove("touring");
    this.label();
    this.button.focus({ preventScroll: true });
  }

  unmark() {
    document.querySelector(".tour-spot")?.classList.remove("tour-spot");
  }

  /** What the step points at, or its whole section while that is still being drawn. */
  spot() {
    const { section, spot } = this.steps[this.index];
    const root = document.getElementById(section);
    return root?.querySelector(spot) ?? root;
  }

  draw() {
    const { run, steps, index } = this;
    if (!run) return;
    const step = steps[index];
    const last = index === steps.length - 1;
    const button = (/** @type {string} */ label, /** @type {() => void} */ onclick, props = {}) => h("button", { type: "button", onclick, ...props }, label);
    const seen = h("p", { class: "quiet" }, step.see(run));
    // A run without recordings has no such words.
    void step.recorded?.(run).then((text) => seen.append(` ${text}`), () => {});
    this.unmark();
    this.spot()?.classList.add("tour-spot");
    document.body.classList.add("touring");
    clear(this.place).append(
      button("✕", () => this.close(), { class: "tool tour-close", "aria-label": "Close the tour; it remembers this step" }),
      h("div", { class: "tour-words" }, h("h2", { tabindex: -1, id: "tour-title" }, h("span", { class: "quiet" }, `${index + 1} of ${steps.length} `), step.title),
        h("p", null, step.text(run))),
      h("div", { class: "tour-words" }, h("p", { class: "fact" }, h("b", null, "Try it. "), step.attempt(run)), seen),
      h("div", { class: "tools" },
        button("Back", () => this.go(index - 1), { disabled: index === 0 }),
        step.show && button("Do it for me", () => choose(step.show?.(run) ?? {})),
        button("To the section, by keyboard", () => this.visit(), { class: "tour-visit" }),
        last ? button("Done", () => this.end(), { class: "tour-next" }) : button("Next", () => this.go(index + 1), { class: "tour-next" })));
    this.place.hidden = false;
    this.place.scrollTop = 0;
    this.label();
  }

  /** Bring the keyboard to the section. */
  visit() {
    const heading = document.querySelector(`#${this.steps[this.index].section} h2`);
    if (!(heading instanceof HTMLElement)) return;
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
    land(() => this.spot());
  }
}

/** The tour's button and its card. @returns {{button: HTMLButtonElement, card: HTMLElement, follow: (run: Run) => void}} */
export function tour() {
  const button = h("button", { type: "button", class: "tour-start", "aria-controls": "tour", hidden: true });
  const card = h("aside", { id: "tour", "aria-labelledby": "tour-title", hidden: true });
  const made = new Tour(card, button);
  return { button, card, follow: (run) => made.follow(run) };
}
