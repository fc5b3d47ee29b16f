// Numbers and names as the page writes them.

/** 3 significant digits, thousands grouped.
 * @param {number} value @returns {string} */
export function number(value) {
  if (!Number.isFinite(value)) return "–";
  if (Math.abs(value) >= 100) return Math.round(value).toLocaleString("en");
  return Number(value.toPrecision(3)).toString();
}

/** A share as per cent, with more digits where it is small. @param {number} value @returns {string} */
export const percent = (value) => `${value === 0 ? 0 : (100 * value).toFixed(value < 0.0995 ? 2 : 1)}\u00a0%`;

/** Names in a sentence: "time and label". @param {string[]} names */
export const listed = (names) => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}`);
