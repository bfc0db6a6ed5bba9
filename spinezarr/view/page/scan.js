/* The page of one scan. */

import { AnswerError, addThemeButton, askJson, bytesText, element, numberText } from "./common.js";
import { PLANES } from "./plane_geometry.js";
import { Panel } from "./scan_panel.js";
import { Stage } from "./scan_stage.js";
import { LAYOUTS, ScanState } from "./scan_state.js";
import { LostError, openScan, placeText } from "./source.js";

const WINDOW_TITLES = { bone: "Bone", soft_tissue: "Soft tissue", lung: "Lung" };
const ZOOM_STEP = 1.25;
const PAGE_SLICES = 10;
const READ_AFTER_MS = 120;
const TOLD_MS = 1500;
const find = (id) => document.getElementById(id);

addThemeButton(document.querySelector(".bar"));
const [, , store, scanId] = location.pathname.split("/").map(decodeURIComponent);

/** Show an error in words, with the next step. */
function explain(problem, isWhole = false) {
  if (problem.name === "AbortError") return;
  const notice = find("notice");
  const reload = element("button", { type: "button", onclick: () => location.reload() }, "Reload");
  const back = element("a", { href: "/" }, "All scans");
  const [text, ...actions] = {
    404: [`There is no scan ${scanId} in ${store}.`, back],
    410: ["The scan was replaced by another version since this page was opened.", reload],
    503: ["The server could not read the scan: it is damaged, or out of reach.", reload],
  }[problem.status] ?? [
    problem instanceof LostError
      ? `The connection to the server is lost. (${problem.message})`
      : problem.message,
    reload,
  ];
  if (!(problem instanceof LostError || problem instanceof AnswerError)) console.error(problem);
  notice.replaceChildren(element("span", {}, text), ...actions);
  notice.classList.toggle("whole", isWhole);
  notice.hidden = false;
}

/** Show the stored values of the voxel where the planes cross. */
function follow(source, state) {
  const status = find("status");
  const names = new Map(source.vertebrae.map((found) => [found.value, found.name]));
  let reading = null;
  let told = "";
  const tell = (hu, label) => {
    const [i, j, k] = state.voxel;
    status.replaceChildren(
      element("b", { class: "hu" }, hu),
      element("b", { class: "label" }, label),
      element("span", {}, `${placeText(source.grid.mmOf(state.voxel))} mm`),
      element("span", { class: "quiet" }, `voxel k ${k}, j ${j}, i ${i}`),
    );
  };
  const read = async () => {
    const place = String(state.voxel);
    if (place === told) return;
    reading?.abort();
    reading = new AbortController();
    const { signal } = reading;
    try {
      await new Promise((resolve) => setTimeout(resolve, READ_AFTER_MS));
      if (signal.aborted) return;
      const { hu, label } = await source.valuesAt(state.voxel, signal);
      if (signal.aborted) return;
      told = place;
      const huText = Number.isFinite(hu) ? `${numberText(hu, 2)} HU` : `${hu}`;
      tell(huText, label ? (names.get(label) ?? `value ${label}`) : "");
      status.dataset.voxel = place;
    } catch (problem) {
      if (problem.name === "AbortError") return;
      tell("not read", "");
      explain(problem);
    }
  };
  state.addEventListener("change", () => {
    if (String(state.voxel) === told) return;
    delete status.dataset.voxel;
    told = "";
    tell("\u2026", "");
    read();
  });
  tell("\u2026", "");
  read();
}

/** Toolbar above the planes: windows, layouts, zoom, detail. */
function addTools(source, state, stage) {
  const windows = Object.keys(source.facts.windows).map((name, i) => {
    const made = element(
      "button",
      { type: "button", "data-window": name, title: `${source.facts.windows[name].join(" to ")} HU (${i + 1})` },
      WINDOW_TITLES[name] ?? name,
    );
    made.addEventListener("click", () => state.setWindow(name));
    return made;
  });
  find("windows").append(...windows);
  const layouts = Object.entries(LAYOUTS).map(([name, title]) =>
    element(
      "button",
      { type: "button", "data-layout": name, onclick: () => state.set({ layout: name, plane: PLANES[name] ? name : state.plane }) },
      title,
    ),
  );
  find("layouts").append(...layouts);
  const [low, high] = [find("window-low"), find("window-high")];
  const limits = () => {
    const window = [Number(low.value), Number(high.value)];
    const isRight = window[0] < window[1];
    high.setCustomValidity(isRight ? "" : "White must be above black.");
    if (isRight) state.set({ window, windowName: null });
    else high.reportValidity();
  };
  low.addEventListener("change", limits);
  high.addEventListener("change", limits);
  find("smooth").addEventListener("click", () => state.set({ isNearest: !state.isNearest }));
  find("zoom-in").addEventListener("click", () => stage.zoom(ZOOM_STEP));
  find("zoom-out").addEventListener("click", () => stage.zoom(1 / ZOOM_STEP));
  find("zoom-fit").addEventListener("click", () => stage.zoomFit());
  stage.addEventListener("shown", () => {
    find("zoom-fit").textContent = `${Math.round(100 * stage.camera.zoom)} %`;
  });
  const show = () => {
    for (const made of windows) {
      made.setAttribute("aria-pressed", String(made.dataset.window === state.windowName));
    }
    for (const made of layouts) {
      made.setAttribute("aria-pressed", String(made.dataset.layout === state.layout));
    }
    find("smooth").setAttribute("aria-pressed", String(!state.isNearest));
    [low.value, high.value] = state.window.map(String);
  };
  state.addEventListener("change", show);
  show();
}

/** The shown level, and the button for full detail. */
function addDetail(source, state, stage) {
  const full = find("full");
  const progress = find("progress");
  const show = () => {
    const level = stage.volume?.levelIndex;
    if (level === null || level === undefined) return;
    find("detail").hidden = false;
    const { spacing } = source.levels[level];
    const size = spacing.map((mm) => numberText(mm, 1)).join(" \u00d7 ");
    find("level").textContent =
      level === 0 ? "All voxels" : `Level ${level}: ${size} mm`;
    const finest = stage.finestLevel;
    full.hidden = level === finest;
    full.textContent = `${finest === 0 ? "Full detail" : `Level ${finest}, the finest that fits`} (${bytesText(stage.bytesOf(finest))})`;
  };
  stage.addEventListener("progress", ({ detail }) => {
    const isLoading = detail.share !== null && !detail.isQuiet;
    progress.hidden = !isLoading;
    full.disabled = isLoading;
    if (isLoading) progress.value = detail.share;
    show();
  });
  full.addEventListener("click", () => loadFull(state, stage));
}

async function loadFull(state, stage) {
  const level = stage.finestLevel;
  if (level === null || stage.volume.levelIndex === level) return;
  try {
    await stage.loadLevel(level);
    state.set({ level: String(level) });
  } catch (problem) {
    explain(problem);
  }
}

/** The scans of the list that led here, in its order; null without a list. */
async function listed(state) {
  if (state.list === null) return null;
  const { ScanIndex, parseState } = await import("./list_state.js");
  const { scans } = await askJson(`/v1/${encodeURIComponent(store)}/scans`);
  const ids = new ScanIndex(scans).select(parseState(state.list)).map((at) => scans[at].scan_id);
  return ids.includes(scanId) ? ids : null;
}

/** Links to the previous and next scan, which keep the state of the view. */
async function addNeighbors(source, state) {
  // Without a list, the order of the server counts.
  const ids = await listed(state).catch(() => null);
  const at = ids?.indexOf(scanId);
  const neighbors = ids ? { previous: ids[at - 1], next: ids[at + 1] } : source.facts;
  for (const id of ["previous", "next"]) {
    const scan = neighbors[id];
    const link = find(id);
    link.hidden = false;
    if (!scan) {
      link.setAttribute("aria-disabled", "true");
      continue;
    }
    const address = () => {
      const query = new URLSearchParams({ window: state.windowName ?? state.window.join(",") });
      if (!state.areLabelsOn) query.set("labels", "false");
      if (!state.hasOutlines) query.set("outlines", "false");
      if (state.layout !== "all") query.set("layout", state.layout);
      if (state.list !== null) query.set("list", state.list);
      const path = `/scan/${encodeURIComponent(store)}/${encodeURIComponent(scan)}`;
      return `${path}?${query}`.replaceAll("%2C", ",");
    };
    link.href = address();
    link.title += `: ${scan}`;
    state.addEventListener("change", () => (link.href = address()));
  }
  if (ids) find("position").textContent = `${at + 1} of ${ids.length}`;
  if (state.list !== null) {
    find("store").href = `/?store=${encodeURIComponent(store)}&${state.list}`;
  }
}

/** Copy a text. */
async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without a secure context there is no Clipboard API; a selection can still be copied.
    const field = element("textarea", { class: "hidden-text" });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), TOLD_MS);
}

/** Other programs that open this scan. */
async function addOpenIn(source) {
  const list = find("open-in-list");
  const button = find("open-in-button");
  const { ways } = await askJson(`${source.path}/open-in`);
  for (const way of ways) {
    const isLink = way.kind === "link";
    const take = element("button", { type: "button" }, "Copy");
    take.addEventListener("click", () => copy(way.text, take));
    const act = isLink ? element("a", { class: "button", href: way.text }, "Open") : take;
    const name = element("div", { class: "name" }, way.name, element("span", { class: "space" }), act);
    const text = isLink ? null : element("pre", { tabindex: "0" }, way.text);
    list.append(element("div", {}, name, element("p", { class: "quiet" }, way.hint), text));
  }
  find("open-in").hidden = ways.length === 0;
  const toggle = (isOpen) => {
    list.hidden = !isOpen;
    button.setAttribute("aria-expanded", String(isOpen));
  };
  button.addEventListener("click", () => toggle(list.hidden));
  document.addEventListener("pointerdown", (event) => {
    if (!find("open-in").contains(event.target)) toggle(false);
  });
  find("open-in").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    toggle(false);
    button.focus();
  });
}

/** Keys of the whole page. */
function addKeys(source, state, stage) {
  const windows = Object.keys(source.facts.windows);
  const follow = (id) => () => find(id).href && find(id).click();
  const slices = (count) => () => state.step(PLANES[state.plane].flat, count);
  const keys = {
    n: follow("next"),
    p: follow("previous"),
    o: () => state.set({ hasOutlines: !state.hasOutlines }),
    l: () => state.set({ areLabelsOn: !state.areLabelsOn }),
    i: () => state.set({ isNearest: !state.isNearest }),
    f: () => loadFull(state, stage),
    "+": () => stage.zoom(ZOOM_STEP),
    "=": () => stage.zoom(ZOOM_STEP),
    "-": () => stage.zoom(1 / ZOOM_STEP),
    0: () => stage.zoomFit(),
    "?": () => find("help").showModal(),
    ArrowUp: slices(1),
    ArrowRight: slices(1),
    ArrowDown: slices(-1),
    ArrowLeft: slices(-1),
    PageUp: slices(PAGE_SLICES),
    PageDown: slices(-PAGE_SLICES),
  };
  windows.forEach((name, i) => (keys[i + 1] = () => state.setWindow(name)));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (find("help").open) return;
    const { target } = event;
    const isRange = target.type === "range";
    const isMoving = event.key.startsWith("Arrow") || event.key.startsWith("Page");
    if (target.closest("select, textarea, input[type=search], input[type=number]")) return;
    if (isMoving && (isRange || target.closest(".panel, .popup"))) return;
    const act = Object.hasOwn(keys, event.key) ? keys[event.key] : null;
    if (!act) return;
    event.preventDefault();
    act();
  });
  find("help-button").addEventListener("click", () => find("help").showModal());
}

async function main() {
  find("title").textContent = scanId;
  find("store").textContent = store;
  find("store").href = `/?store=${encodeURIComponent(store)}`;
  document.title = `${scanId} \u2013 ${store}`;
  let source;
  try {
    source = await openScan(store, scanId);
  } catch (problem) {
    explain(problem, true);
    return;
  }
  performance.mark("facts");
  const state = new ScanState(source, new URLSearchParams(location.search));
  find("scan").hidden = false;
  const stage = new Stage(find("stage"), source, state);
  const panel = new Panel(find("panel"), source, state);
  addTools(source, state, stage);
  addDetail(source, state, stage);
  addNeighbors(source, state);
  addKeys(source, state, stage);
  find("copy").addEventListener("click", () => copy(location.href, find("copy")));
  const remember = () => history.replaceState(null, "", `?${state.query}`);
  state.addEventListener("change", remember);
  remember();
  stage.addEventListener("problem", ({ detail }) => explain(detail));
  await stage.firstView;
  follow(source, state);
  addOpenIn(source).catch(explain);
  if (!Stage.canDrawVolumes) {
    stage.lackVolumes();
    panel.leaveLooksToServer();
    return;
  }
  try {
    await stage.startVolumes();
  } catch (problem) {
    explain(problem);
  }
}

main();
