// In place of the gates, for networks that have none: the loss while the run was trained, and what it drew.

import { lineChart, redraw } from "../draw/chart.js";
import { h, table } from "../draw/dom.js";
import { number } from "../draw/format.js";
import { arrays, at, floats, forget, picture, query } from "../page/api.js";
import { asChosen, curveControls } from "../page/curve_controls.js";
import { onNews } from "../page/live.js";
import { panel } from "../page/panel.js";
import { joined } from "../page/recording.js";
import { whichWeights } from "../page/state.js";

/** @typedef {import("../page/api.js").Run} Run */
/** @typedef {import("../page/api.js").Tensor} Tensor */

/** @param {Record<string, Tensor>} found @param {[number, number][]} news steps and losses, of which those already there are passed over */
export function addLosses(found, news) {
  const known = floats(found.loss_step).at(-1) ?? -1;
  const fresh = news.filter(([step]) => step > known);
  found.loss_step = joined(found.loss_step, fresh.map(([step]) => step));
  found.loss = joined(found.loss, fresh.map(([, loss]) => loss));
}

/** What to draw of them. @param {Record<string, Tensor>} found */
export const lossLine = (found) => ({ x: floats(found.loss_step), ...asChosen([{ name: "loss", y: floats(found.loss) }]) });

/** @param {HTMLElement} root @param {Run} run @param {string} why there are no gates */
export function mountLosses(root, run, why) {
  const path = at(run.id, `/losses${query(whichWeights())}`);
  /** @type {Record<string, Tensor> | null} */
  let found = null;
  /** @type {SVGSVGElement | null} */
  let chart = null;
  const image = h("img", { class: "gates-picture", alt: "" });
  const caption = h("figcaption");
  const drawn = h("figure", { class: "gates-preview", hidden: true }, h("h3", { class: "chart-title" }, "The same noise, drawn again and again"), image, caption);
  const place = h("div", { class: "gates-chart" }, h("div", { class: "chart-head" }, h("h3", { class: "chart-title" }, "Training loss"), curveControls(() => {
    if (chart && found) redraw(chart, lossLine(found));
  })));
  const frame = panel({
    id: "gates", title: "Watch the gates open", intro: `${why} This is what was recorded during training.`,
    python: () => `import ditlab\nditlab.load(${JSON.stringify(run.path)}).folder.read_metrics()  # one dict a line: step, loss, …\n`,
    download: () => found && { name: `${run.name}-losses`, arrays: found },
    picture: () => chart,
    table: () => found && table("Training loss", ["training step", "loss"], Array.from(floats(found.loss_step), (step, i) => [step.toLocaleString("en"), number(floats(found?.loss)[i])])),
  });

  const draw = (/** @type {number[]} */ previews) => {
    const newest = previews.at(-1);
    drawn.hidden = newest === undefined;
    if (newest === undefined) return;
    image.src = picture(at(run.id, `/samples/${newest}`));
    image.alt = `Samples from the same noise at every step, drawn after ${newest.toLocaleString("en")} training steps`;
    caption.textContent = `Samples after ${newest.toLocaleString("en")} steps.`;
  };
  const load = () => frame.ask(async (signal) => {
    const answer = await arrays(path, { signal });
    found = { ...answer.arrays };
    chart?.remove();
    chart = lineChart({ title: "Training loss over training steps", xLabel: "training step", yLabel: "loss", height: 240, ...lossLine(found) });
    place.append(chart);
    draw(JSON.parse(answer.meta.previews ?? "[]"));
  });
  frame.body.append(h("div", { class: "gates-main" }, place, drawn));
  root.append(frame.root);
  const take = (/** @type {import("../page/live.js").News} */ news) => {
    if (news.cut || (!found && news.losses)) {
      forget(path);
      return load();
    }
    if (news.previews) draw(news.previews);
    if (!found || !chart || !news.losses) return;
    addLosses(found, news.losses);
    redraw(chart, lossLine(found));
    frame.refresh();
  };
  load();
  onNews(take);
}
