/* Names, order and colors of vertebrae. A test checks that they equal those of spinezarr.vertebrae. */

const numbered = (letter, count) => Array.from({ length: count }, (_, at) => `${letter}${at + 1}`);

/** All vertebrae from head to tail. */
export const VERTEBRAE = Object.freeze([
  ...numbered("C", 7), ...numbered("T", 13), ...numbered("L", 6), "sacrum", "coccyx",
]);
const ORDER = new Map(VERTEBRAE.map((name, at) => [name, at]));
const UNUSUAL = new Set(["T13", "L6"]);
const GOLDEN_ANGLE = 0.381966;
const OTHER_COLOR = "#d9d9d9";
const SATURATION = 0.75;

/** Rank of a vertebra from head to tail; -1 for other structures. */
export function orderOf(name) {
  return ORDER.get(name) ?? -1;
}

/** The color in which all pictures and pages show a vertebra, "#rrggbb". */
export function colorOf(name) {
  const order = orderOf(name);
  if (order < 0) return OTHER_COLOR;
  const hue = (order * GOLDEN_ANGLE) % 1;
  const part = (shift) => {
    const at = (shift + hue * 6) % 6;
    const value = 1 - SATURATION * Math.max(0, Math.min(at, 4 - at, 1));
    return Math.round(255 * value).toString(16).padStart(2, "0");
  };
  return `#${part(5)}${part(3)}${part(1)}`;
}

/**
 * Format vertebrae as ranges, e.g. "T9–L5" or "C2–T3, T5–L5 + T13".
 * @param {string[]} names from head to tail
 */
export function rangesText(names) {
  const unusual = names.filter((name) => UNUSUAL.has(name));
  const runs = [];
  let next = -1;
  for (const name of names) {
    const order = orderOf(name);
    if (order < 0) {
      runs.push([name]);
      next = -1;
      continue;
    }
    if (UNUSUAL.has(name)) continue;
    if (order === next) runs[runs.length - 1][1] = name;
    else runs.push([name]);
    next = order + 1;
    while (UNUSUAL.has(VERTEBRAE[next])) next += 1;
  }
  const text = runs.map((run) => run.join("–")).join(", ");
  if (!unusual.length) return text;
  return (text ? [text, ...unusual] : unusual).join(" + ");
}
