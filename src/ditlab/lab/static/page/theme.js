// Light, dark, or as the system says; remembered between visits.

import { h } from "../draw/dom.js";
import { lifetime } from "./lifetime.js";

const THEMES = ["auto", "light", "dark"];
const STORE = "ditlab-theme";

function stored() {
  try {
    return localStorage.getItem(STORE) ?? "auto";
  } catch {
    return "auto"; // Storage may be forbidden, as in a file opened from disk.
  }
}

/** @param {string} theme */
function apply(theme) {
  document.documentElement.dataset.theme = THEMES.includes(theme) ? theme : "auto";
  try {
    localStorage.setItem(STORE, theme);
  } catch {
    // Then it holds until the page closes.
  }
}

/** Canvas colours do not follow the theme by themselves. @param {() => void} redraw called as long as the sections at hand live */
export function onTheme(redraw) {
  const signal = lifetime();
  const watch = new MutationObserver(redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw, { signal });
  watch.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  signal?.addEventListener("abort", () => watch.disconnect(), { once: true });
}

/** @returns {HTMLElement} */
export function themeChooser() {
  const now = stored();
  apply(now);
  const choose = h("select", { id: "choose-theme", value: now, onchange: (/** @type {Event} */ event) => apply(/** @type {HTMLSelectElement} */ (event.target).value) },
    THEMES.map((theme) => h("option", { value: theme }, theme)));
  return h("div", { class: "field field-inline" }, h("label", { for: "choose-theme" }, "Theme"), choose);
}
