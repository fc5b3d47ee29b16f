// How long the sections of a run live: until those of another are mounted. What they wait for and listen to ends with them.

/** @type {AbortController | null} */
let current = null;

/** Aborted once another run is shown; none before the first. */
export const lifetime = () => current?.signal;

/** The sections that were mounted so far are about to go. */
export function renew() {
  current?.abort();
  current = new AbortController();
}

/** @param {AbortSignal} signal @returns {AbortSignal} aborted with it, or with the sections at hand */
export const living = (signal) => (current ? AbortSignal.any([signal, current.signal]) : signal);
