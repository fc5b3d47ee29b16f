// Of networks with cross-attention: how each layer shares its attention between the conditions it reads.

import { clear, h, table } from "../draw/dom.js";
import { listed, percent } from "../draw/format.js";
import { arrays, at, floats, isAbort, latest, query } from "../page/api.js";
import { staleness } from "../page/stale.js";
import { WHERE, onChange, where } from "../page/state.js";

/** @typedef {import("../page/api.js").Run} Run */

/** @param {Run} run @returns {{root: HTMLElement} | null} null without cross-attention */
export function cross(run) {
  const names = run.cross_tokens;
  if (!names.length) return null;
  const body = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Cross-attention in numbers" });
  const root = h("div", { class: "numbers" }, h("h3", null, "What the patches read from the conditions"),
    h("p", null, `The maps above show self-attention, among patches. Each block also has cross-attention, through which its patches read ${names.length} tokens: ${listed(names)}. A patch’s shares among them add up to 100 %. In Python, ditlab.probe records them for every head and patch in record.cross[layer].`), body);
  const next = latest();
  const stale = staleness(body);
  const load = async () => {
    stale.begin();
    try {
      const { share } = (await arrays(at(run.id, `/attention/cross${query(where())}`), { signal: next() })).arrays;
      const values = floats(share);
      const rows = Array.from({ length: share.shape[0] }, (_, layer) => [`layer ${layer}`, ...names.map((_, k) => percent(values[layer * names.length + k]))]);
      clear(body).append(table("Share of the cross-attention that each condition gets: means over heads and patches", ["layer", ...names], rows));
      body.querySelector("table")?.classList.add("wide");
    } catch (error) {
      if (isAbort(error)) return; // A newer question took over.
      body.textContent = error instanceof Error ? error.message : String(error);
    }
    stale.end();
  };
  onChange(WHERE, load);
  void load();
  return { root };
}
