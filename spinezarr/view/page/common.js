/* Functions that the list page and the scan page share. */

/** A response with an error status. Its message is a text for the user. */
export class ResponseError extends Error {
  constructor(status, text) {
    super(text.trim() || `The server answered with status ${status}.`);
    this.status = status;
  }
}

/**
 * Request a path from this server.
 * @param {string} path on the server
 * @param {RequestInit} options of `fetch`
 * @returns {Promise<Response>} a successful response
 */
export async function request(path, options = {}) {
  const response = await fetch(path, { credentials: "same-origin", ...options });
  if (response.ok) return response;
  if (response.status === 401) {
    location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  throw new ResponseError(response.status, await response.text());
}

/** Request JSON from this server. */
export async function requestJson(path, options = {}) {
  return (await request(path, options)).json();
}

/**
 * Make an element.
 * @param {string} tag e.g. "button"
 * @param {Object<string, *>} fields attributes as in HTML; the names of listeners begin with "on";
 *   values that are false, null or undefined are left out
 * @param {...(Node|string)} children in order
 */
export function element(tag, fields = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** Make a square in a color. The policy of the page forbids style attributes, so CSSOM sets it. */
export function swatch(color) {
  const node = element("span", { class: "swatch", "aria-hidden": "true" });
  node.style.backgroundColor = color;
  return node;
}

/** Format a number of bytes for people. */
export function bytesText(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  let value = count;
  while (value >= 1000 && power < units.length - 1) {
    value /= 1000;
    power += 1;
  }
  return `${power === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${units[power]}`;
}

/** Format a number with at most some digits after the point. */
export function numberText(value, digits = 2) {
  if (!FORMATS.has(digits)) FORMATS.set(digits, new Intl.NumberFormat("en", { maximumFractionDigits: digits }));
  return FORMATS.get(digits).format(Number(value.toFixed(digits)));
}
const FORMATS = new Map();

const THEMES = ["system", "light", "dark"];

/** Add a button for the theme to the bar. The browser remembers the theme. */
export function addThemeButton(bar) {
  const stored = localStorage.getItem("theme");
  let theme = THEMES.includes(stored) ? stored : "system";
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
