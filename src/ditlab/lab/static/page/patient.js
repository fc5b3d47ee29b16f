// For what takes the lab seconds: it waits until somebody comes near, and is dropped when it is scrolled away.

import { isAbort, latest } from "./api.js";
import { lifetime } from "./lifetime.js";

/**
 * @param {HTMLElement} node near which somebody must be
 * @param {(signal: AbortSignal) => Promise<void>} load asks and shows; what it throws, except that it was aborted, ends it
 * @returns {{start: () => void, now: () => void, again: () => void, stop: () => void, near: () => boolean}} `start` once the
 *   section has what it needs; `now` for who asks for it, near or not; `again` after what was loaded became stale; `stop` in
 *   place of `again`, where it then waits for `now`
 */
export function patient(node, load) {
  const next = latest();
  /** @type {"waiting" | "asking" | "done"} */
  let state = "waiting";
  let [near, started, insisted] = [false, false, false];
  const ask = async () => {
    if (!(near || insisted) || state === "asking" || !node.isConnected) return;
    state = "asking";
    const signal = next();
    try {
      await load(signal);
    } catch (error) {
      if (isAbort(error)) return; // Whoever aborted it says how it goes on.
    }
    state = "done";
    insisted = false;
  };
  const wait = () => {
    next();
    state = "waiting";
  };
  const start = () => {
    if (started || !node.isConnected) return;
    started = true;
    const watch = new IntersectionObserver((entries) => {
      near = entries[entries.length - 1].isIntersecting;
      if (!near && !insisted && state === "asking") wait();
      if (near && state === "waiting") void ask();
    }, { rootMargin: "200px" });
    watch.observe(node);
    lifetime()?.addEventListener("abort", () => watch.disconnect(), { once: true });
  };
  const again = () => {
    wait();
    if (started) void ask();
  };
  const stop = () => {
    next();
    insisted = false;
    state = "done";
  };
  const now = () => {
    insisted = true;
    wait();
    start();
    void ask();
  };
  return { start, now, again, stop, near: () => near };
}
