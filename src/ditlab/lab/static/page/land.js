// Going to a place of the page, and staying there while what is above it is still being drawn.

/** Milliseconds after which nobody expects to be held any more. */
const LONG = 20_000;

let leave = () => {};

/** @param {() => Element | null | undefined} find where to: it may be drawn anew meanwhile */
export function land(find) {
  leave();
  const stay = () => find()?.scrollIntoView({ behavior: "instant", block: "start" });
  const watch = new ResizeObserver(stay);
  const control = new AbortController();
  const timer = setTimeout(() => leave(), LONG);
  leave = () => {
    clearTimeout(timer);
    watch.disconnect();
    control.abort();
  };
  // Whoever moves by themselves is let go.
  for (const type of ["wheel", "touchstart", "pointerdown", "keydown"]) addEventListener(type, () => leave(), { signal: control.signal, passive: true });
  watch.observe(document.body);
  stay();
}
