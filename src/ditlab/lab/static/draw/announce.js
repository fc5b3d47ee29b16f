/** One polite live region for read-outs that have no visible place of their own. */
import { h } from "./dom.js";

/** @type {HTMLElement | null} */
let region = null;

/** Let a screen reader say `text` when it is done with what it says now.
 * @param {string} text */
export function announce(text) {
  if (!region?.isConnected) {
    region = h("div", { class: "read-out-only", "aria-live": "polite", role: "status" });
    document.body.append(region);
  }
  region.textContent = text;
}
