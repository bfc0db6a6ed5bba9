/* Functions that the list page and the scan page share. */

/** An answer with an error status; its message is for a person. */
export class AnswerError extends Error {
  constructor(status, text) {
    super(text.trim() || `The server answered with status ${status}.`);
    this.status = status;
  }
}

/**
 * Fetch a path from this server.
 * @param {string} path on the server
 * @param {RequestInit} options of `fetch`
 * @returns {Promise<Response>} a successful answer
 */
export async function ask(path, options = {}) {
  const response = await fetch(path, { credentials: "same-origin", ...options });
  if (response.ok) return response;
  if (response.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  throw new AnswerError(response.status, await response.text());
}

/** Fetch JSON from this server. */
export async function askJson(path, options = {}) {
  return (await ask(path, options)).json();
}

/**
 * Make an element.
 * @param {string} tag e.g. "button"
 * @param {Object<string, *>} fields attributes; "on…" listen, "class" and data-… as in HTML;
 *   false, null and undefined leave an attribute out
 * @param {...(Node|string)} children in order
 */
export function element(tag, fields = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

/** A square in the color of a vertebra. The page's policy forbids style attributes, so CSSOM sets it. */
export function swatch(color) {
  const made = element("span", { class: "swatch", "aria-hidden": "true" });
  made.style.backgroundColor = color;
  return made;
}

/** Format a number of bytes for people. */
export function bytesText(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  let value = count;
  while (value >= 1000 && at < units.length - 1) {
    value /= 1000;
    at += 1;
  }
  return `${at === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${units[at]}`;
}

/** Format a number with a sensible number of digits. */
export function numberText(value, digits = 2) {
  if (!FORMS.has(digits)) FORMS.set(digits, new Intl.NumberFormat("en", { maximumFractionDigits: digits }));
  return FORMS.get(digits).format(Number(value.toFixed(digits)));
}
const FORMS = new Map();

const THEMES = ["system", "light", "dark"];

/** Add the choice of light or dark mode to the bar; the browser remembers it. */
export function addThemeButton(bar) {
  const kept = localStorage.getItem("theme");
  let theme = THEMES.includes(kept) ? kept : "system";
  const button = element("button", { type: "button", id: "theme" });
  const show = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    localStorage.setItem("theme", theme);
    show();
    document.dispatchEvent(new Event("themechange"));
  });
  show();
  bar.append(button);
}

/** Whether this build has NiiVue. */
export const hasNiivue = document.documentElement.dataset.niivue === "true";
