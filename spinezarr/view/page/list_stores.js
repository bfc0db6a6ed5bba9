/* Facts of a store: as a card in the list of stores, and above the list of its scans. */

import { bytesText, element } from "./common.js";

const countText = (count) => count.toLocaleString("en");

/** "1 scan", "1,005 scans". */
export function scansText(count) {
  return `${countText(count)} ${count === 1 ? "scan" : "scans"}`;
}

/** "1 store", "3 stores". */
export function storesText(count) {
  return `${countText(count)} ${count === 1 ? "store" : "stores"}`;
}

/** Copy a text. Pages without TLS cannot use the Clipboard API; there, a selection is copied. */
async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const area = element("textarea", { class: "hidden-text", "aria-hidden": "true" });
  const focused = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!isCopied) throw new Error("the browser does not allow pages to copy");
}

function copyButton(text) {
  const button = element("button", { type: "button", class: "small copy" }, "Copy citation");
  button.addEventListener("click", async () => {
    let message = "Copied";
    try {
      await copyText(text);
    } catch {
      message = "Not copied";
    }
    button.textContent = message;
    setTimeout(() => { button.textContent = "Copy citation"; }, 1600);
  });
  return button;
}

function homepageLink(store) {
  if (!/^https?:\/\//i.test(store.homepage ?? "")) return null;
  return element(
    "a", { href: store.homepage, rel: "noopener noreferrer", class: "homepage" }, "Homepage");
}

/** Splits of a store: train, validation and test come first. */
function splitsOf(store) {
  const usual = ["train", "validation", "test"];
  const place = (name) => (usual.includes(name) ? usual.indexOf(name) : usual.length);
  return Object.entries(store.splits).sort(([a], [b]) => place(a) - place(b) || a.localeCompare(b));
}

function splitsText(store) {
  return splitsOf(store).map(([name, count]) => `${name || "no split"} ${countText(count)}`).join(" · ");
}

function sizesText(store) {
  const stored = `${bytesText(store.stored_bytes)} stored`;
  if (!store.source_bytes) return stored;
  return `${stored}, source files ${bytesText(store.source_bytes)}`.replace(/(\d) /g, "$1\u00a0");
}

function fact(name, text, kind = "") {
  if (!text) return null;
  return element("div", { class: `fact ${kind}` }, element("dt", {}, name), element("dd", {}, text));
}

/** URL of the list of a store's scans. */
function storeUrl(name) {
  return `/?${new URLSearchParams({ store: name })}`;
}

/** The list of stores. */
export function storeCards(stores) {
  return element("section", { class: "stores", "aria-labelledby": "stores-title" },
    element("h1", { id: "stores-title" }, storesText(stores.length)),
    element("ul", { class: "cards" }, ...stores.map(storeCard)));
}

function storeCard(store) {
  if (store.error !== undefined) {
    return element("li", { class: "card unreadable" },
      element("h2", {}, store.name),
      element("p", { class: "error" }, `This store is not shown: ${store.error}.`),
      element("p", { class: "quiet" },
        "The log of the server has details. Run ", element("code", {}, "spinezarr verify"), " to find the damage."));
  }
  return element("li", { class: "card" },
    element("h2", {}, element("a", { href: storeUrl(store.name) }, store.title || store.name)),
    element("p", { class: "count" }, scansText(store.scans), element("span", { class: "quiet" }, splitsText(store))),
    element("dl", { class: "facts" },
      fact("Name", store.name),
      fact("Size", sizesText(store)),
      fact("License", store.license),
      fact("Citation", store.citation, "clamped")),
    element("p", { class: "actions" },
      store.citation ? copyButton(store.citation) : null, homepageLink(store)));
}

/** The header of a store, above the list of its scans. */
export function storeHeader(store, stores) {
  const others = stores.length > 1
    ? element("nav", { "aria-label": "Stores" }, element("a", { href: "/", class: "all-stores" }, `All ${storesText(stores.length)}`))
    : null;
  const cite = store.citation
    ? element("details", { class: "cite" },
      element("summary", {}, "Citation"),
      element("div", { class: "popover" }, element("p", {}, store.citation), copyButton(store.citation)))
    : null;
  return element("section", { class: "store", "aria-labelledby": "store-title" },
    element("div", { class: "title" },
      element("h1", { id: "store-title" }, store.title || store.name), others),
    element("div", { class: "about" },
      element("span", {}, element("strong", {}, scansText(store.scans)), ` ${splitsText(store)}`),
      element("span", {}, sizesText(store)),
      store.license ? element("span", {}, store.license) : null,
      homepageLink(store),
      cite));
}

/** Close the open parts of the header when the focus leaves them. */
export function closePopovers(event) {
  for (const open of document.querySelectorAll("details.cite[open]")) {
    const isEscape = event.type === "keydown" && event.key === "Escape";
    if (isEscape || (event.type === "pointerdown" && !open.contains(event.target))) {
      open.open = false;
      if (isEscape) open.querySelector("summary").focus();
    }
  }
}
