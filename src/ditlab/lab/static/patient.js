// For what takes the lab seconds: it waits until somebody comes near, and steps back whenever another choice wants an
// answer at once, because the lab does one thing at a time.

import { isAbort, latest } from "./api.js";
import { onChange } from "./state.js";

/** How long nothing must change before the lab is asked again. */
const QUIET = 800;

/**
 * @param {HTMLElement} node near which somebody must be
 * @param {(signal: AbortSignal) => Promise<void>} load asks and shows; what it throws, except that it was aborted, ends it
 * @param {import("./state.js").Key[]} urgent what wants an answer at once
 * @returns {{start: () => void, now: () => void, again: () => void, stop: () => void, near: () => boolean}} `start` once the
 *   section has what it needs; `now` for who asks for it; `again` after what was loaded became stale, with a change of
 *   `urgent` to follow; `stop` in place of `again`, where it then waits for `now`
 */
export function patient(node, load, urgent) {
  const next = latest();
  /** @type {"waiting" | "asking" | "done"} */
  let state = "waiting";
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  let [near, started] = [false, false];
  const ask = async () => {
    if (!near || state === "asking" || !node.isConnected) return;
    state = "asking";
    try {
      await load(next());
      state = "done";
    } catch (error) {
      if (!isAbort(error)) state = "done";
    }
  };
  onChange(urgent, () => {
    if (state === "done") return;
    next();
    state = "waiting";
    clearTimeout(timer);
    timer = setTimeout(ask, QUIET);
  });
  const start = () => {
    if (started || !node.isConnected) return;
    started = true;
    const watch = new IntersectionObserver((entries) => {
      near = entries.some((entry) => entry.isIntersecting);
      if (!near) return;
      watch.disconnect();
      ask();
    }, { rootMargin: "200px" });
    watch.observe(node);
  };
  const again = () => {
    state = "waiting";
  };
  const stop = () => {
    clearTimeout(timer);
    next();
    state = "done";
  };
  const now = () => {
    state = "waiting";
    if (near) void ask();
    else start();
  };
  return { start, now, again, stop, near: () => near };
}
