/* The page of stores and their scans. */

import { ResponseError, addThemeButton, requestJson, element } from "./common.js";
import { Charts } from "./list_charts.js";
import { Filters } from "./list_filters.js";
import { ScanIndex, formatState, isAll, parseState } from "./list_state.js";
import { closePopovers, storeCards, storeHeader, storesText } from "./list_stores.js";
import { ScanTable } from "./list_table.js";

/** Delay of URL changes, because browsers refuse a change at each key press. */
const URL_DELAY_MS = 200;
/** Delay before a progress text is shown, so that it does not flicker. */
const PROGRESS_DELAY_MS = 400;
const NARROW = "(max-width: 1100px)";
/** Statuses of pictures of scans or masks that were replaced or removed. */
const OUTDATED = new Set([404, 410, 422]);
const main = document.getElementById("main");
const skip = document.querySelector(".skip");

addThemeButton(document.querySelector(".bar"));
document.addEventListener("pointerdown", closePopovers);
document.addEventListener("keydown", closePopovers);
start();

async function start() {
  const state = parseState(location.search);
  main.setAttribute("aria-busy", "true");
  const progressTimer = setTimeout(() => {
    main.replaceChildren(element("p", { class: "message quiet", role: "status" }, "Reading the scan table …"));
  }, PROGRESS_DELAY_MS);
  try {
    // If the URL names the store, both requests are sent at once.
    const [{ stores }, earlyRows] = await Promise.all([
      requestExplained("/v1/stores"),
      state.store ? scansOf(state.store).catch((problem) => problem) : null,
    ]);
    await showStores(stores, state, earlyRows);
  } catch (problem) {
    showProblem(problem);
  } finally {
    clearTimeout(progressTimer);
    main.setAttribute("aria-busy", "false");
  }
}

async function scansOf(store) {
  return (await requestExplained(`/v1/${encodeURIComponent(store)}/scans`)).scans;
}

/** Request JSON. A lost connection is an error with a text for the user. */
async function requestExplained(path) {
  try {
    return await requestJson(path);
  } catch (problem) {
    if (problem instanceof ResponseError) throw problem;
    throw new ResponseError(0, "The server does not answer. It may be stopped, or the network is down.");
  }
}

async function showStores(stores, state, earlyRows) {
  const storeName = state.store || (stores.length === 1 ? stores[0].name : "");
  const store = stores.find(({ name }) => name === storeName);
  if (!stores.length) {
    message("No stores", "This server serves no store now. Stores appear here when they are ingested into a folder that it serves.");
  } else if (!storeName) {
    main.replaceChildren(storeCards(stores));
  } else if (!store) {
    message("No such store", `No store is named ${storeName}.`, allStores(stores));
  } else if (store.error !== undefined) {
    if (stores.length > 1) message(store.name, `This store is not shown: ${store.error}.`, allStores(stores));
    else main.replaceChildren(storeCards(stores));
  } else {
    const rows = earlyRows ?? await scansOf(storeName);
    if (rows instanceof Error) throw rows;
    showScans(store, stores, rows, { ...state, store: state.store ? storeName : "" });
  }
}

function allStores(stores) {
  return element("a", { href: "/", class: "button" }, stores.length === 1 ? "Show the store" : `Show all ${storesText(stores.length)}`);
}

function message(title, text, ...actions) {
  main.replaceChildren(element("section", { class: "message", role: "status" },
    element("h1", {}, title), element("p", {}, text), ...actions));
}

/** Show an error in words. If a token is missing, the page to sign in is already being opened. */
function showProblem(problem) {
  if (problem.status === 401) return;
  if (!(problem instanceof ResponseError)) console.error(problem);
  const text = problem instanceof ResponseError ? problem.message : `This page failed: ${problem.message}`;
  const retry = element("button", { type: "button", onclick: () => start() }, "Try again");
  main.replaceChildren(element("section", { class: "message", role: "alert" },
    element("h1", {}, "The stores cannot be shown"), element("p", { class: "error" }, text), retry));
}

function showScans(store, stores, rows, firstState) {
  const index = new ScanIndex(rows);
  let state = firstState;
  let saveTimer = 0;

  const change = (changed) => {
    state = { ...state, ...changed };
    draw();
    clearTimeout(saveTimer);
    saveTimer = setTimeout(saveState, URL_DELAY_MS);
  };
  /** Put the state and the scroll position into the URL. */
  const saveState = () => {
    clearTimeout(saveTimer);
    const query = formatState(state);
    const place = { top: table.top, active: table.active };
    history.replaceState(place, "", query ? `/?${query}` : "/");
  };
  const sortBy = (column) => {
    if (state.sort !== column) change({ sort: column, isDescending: false });
    else if (!state.isDescending) change({ isDescending: true });
    else change({ sort: "", isDescending: false });
  };
  const pick = (vertebra) => change({ vertebra: state.vertebra === vertebra ? "" : vertebra });
  const filters = new Filters(index, change);
  const charts = new Charts(index, pick);
  const notice = new OutdatedNotice();
  const table = new ScanTable(store.name, index, {
    onsort: sortBy,
    onmove: (isImmediate) => {
      clearTimeout(saveTimer);
      if (isImmediate) saveState();
      else saveTimer = setTimeout(saveState, URL_DELAY_MS);
    },
    onfail: (scanId, problem) => {
      if (OUTDATED.has(problem.status)) notice.say(scanId, problem.message);
    },
  });
  const draw = () => {
    const positions = index.select(state);
    filters.show(state, positions.length);
    charts.show(positions, state);
    table.show(positions, state, formatState(state, false), emptyMessage(rows, state));
  };

  document.title = `${store.title || store.name} – spinezarr`;
  main.replaceChildren(element("div", { class: "list" },
    storeHeader(store, stores),
    element("div", { class: "tools" }, filters.element, filters.count, chartsButton(charts.element)),
    notice.element,
    table.element, charts.element));
  const place = history.state;
  draw();
  if (place && Number.isFinite(place.top)) table.restore(place.top, place.active);
  addKeys(filters, table, saveState);
}

/** Says that the store has changed since the list was opened. */
class OutdatedNotice {
  constructor() {
    this.element = element("div", { class: "notice", role: "alert", hidden: true });
  }

  /** Say what happened to a scan. The first scan is named; more would only repeat it. */
  say(scanId, reason) {
    if (!this.element.hidden) return;
    const text = `The store has changed since this list was opened. ${scanId}: ${reason}`;
    const reload = element("button", { type: "button", onclick: () => location.reload() }, "Reload");
    this.element.replaceChildren(element("span", {}, text), reload);
    this.element.hidden = false;
  }
}

/** Return the elements that are shown if no row matches. */
function emptyMessage(rows, state) {
  if (!rows.length) {
    return [element("h2", {}, "No scans yet"), element("p", { class: "quiet" }, "Scans appear when an ingest run has written the table of the store.")];
  }
  return isAll(state) ? [] : [element("h2", {}, "No scan fits"), element("p", { class: "quiet" }, "Remove a filter, or search for fewer words.")];
}

/** Charts are next to the list. In a narrow window, they cover it, and only on request. */
function chartsButton(charts) {
  const narrow = matchMedia(NARROW);
  const button = element("button", { type: "button", class: "charts-button", "aria-controls": "charts" }, "Charts");
  const show = (isShown) => {
    charts.hidden = !isShown;
    button.setAttribute("aria-expanded", String(isShown));
    main.classList.toggle("with-charts", isShown);
  };
  button.addEventListener("click", () => show(charts.hidden));
  narrow.addEventListener("change", () => show(!narrow.matches));
  show(!narrow.matches);
  return button;
}

function addKeys(filters, table, saveState) {
  skip.hidden = false;
  skip.addEventListener("click", (event) => {
    event.preventDefault();
    table.focus();
  });
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input, select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/" && !isTyping) {
      event.preventDefault();
      filters.search.focus();
      filters.search.select();
    } else if (event.key === "ArrowDown" && event.target === filters.search) {
      event.preventDefault();
      table.focus();
    }
  });
  window.addEventListener("pagehide", saveState);
}
