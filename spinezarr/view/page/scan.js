/* The page of one scan. */

import { ResponseError, addThemeButton, requestJson, bytesText, element, numberText } from "./common.js";
import { PLANES } from "./plane_geometry.js";
import { Panel } from "./scan_panel.js";
import { Stage } from "./scan_stage.js";
import { LAYOUTS, ScanState } from "./scan_state.js";
import { LostError, openScan, placeText } from "./source.js";

const WINDOW_TITLES = { bone: "Bone", soft_tissue: "Soft tissue", lung: "Lung" };
const ZOOM_STEP = 1.25;
const PAGE_SLICES = 10;
const READ_AFTER_MS = 120;
const COPIED_MS = 1500;
const byId = (id) => document.getElementById(id);

addThemeButton(document.querySelector(".bar"));
const [, , store, scanId] = location.pathname.split("/").map(decodeURIComponent);

/** Show an error in words, with links to the next step. */
function showProblem(problem, isWhole = false) {
  if (problem.name === "AbortError") return;
  const notice = byId("notice");
  const reload = element("button", { type: "button", onclick: () => location.reload() }, "Reload");
  const back = element("a", { href: "/" }, "All scans");
  const [text, ...actions] = {
    404: [`There is no scan ${scanId} in ${store}.`, back],
    410: [`${problem.message.replace(/\.$/, "")} since this page was opened.`, reload],
    503: ["The server cannot read the scan. It is damaged, or cannot be reached.", reload],
  }[problem.status] ?? [
    problem instanceof LostError
      ? `The connection to the server is lost (${problem.message}).`
      : problem.message,
    reload,
  ];
  if (!(problem instanceof LostError || problem instanceof ResponseError)) console.error(problem);
  notice.replaceChildren(element("span", {}, text), ...actions);
  notice.classList.toggle("whole", isWhole);
  notice.hidden = false;
}

/** Show the stored values of the voxel where the planes cross. */
function showVoxelValues(source, state) {
  const status = byId("status");
  let reading = null;
  let shownPlace = "";
  const nameOf = (mask, value) => {
    const label = source.labelsOf(mask).find((found) => found.value === value);
    return value === 0 ? "" : (label?.name ?? `value ${value}`);
  };
  /** Name the values of one mask, or of two with the names of the masks. */
  const labelTexts = (masks, values) => {
    const names = values.map((value, at) => nameOf(masks[at], value));
    return masks.length < 2 ? names : names.map((name, at) => `${masks[at]} ${name || "\u2013"}`);
  };
  const placeOf = (masks) => [...state.voxel, ...masks].join(" ");
  const shownMasks = () => [state.mask, state.shownOutline].filter((name) => name !== null);
  const showText = (hu, labels) => {
    const [i, j, k] = state.voxel;
    status.replaceChildren(
      element("b", { class: "hu" }, hu),
      ...labels.map((label) => element("b", { class: "label" }, label)),
      element("span", {}, `${placeText(source.grid.mmOf(state.voxel))} mm`),
      element("span", { class: "quiet" }, `voxel k ${k}, j ${j}, i ${i}`),
    );
  };
  const read = async () => {
    const masks = shownMasks();
    const place = String(state.voxel);
    if (placeOf(masks) === shownPlace) return;
    reading?.abort();
    reading = new AbortController();
    const { signal } = reading;
    try {
      await new Promise((resolve) => setTimeout(resolve, READ_AFTER_MS));
      if (signal.aborted) return;
      const { hu, labels } = await source.valuesAt(state.voxel, masks, signal);
      if (signal.aborted) return;
      shownPlace = placeOf(masks);
      const huText = Number.isFinite(hu) ? `${numberText(hu, 2)} HU` : `${hu}`;
      showText(huText, labelTexts(masks, labels));
      status.dataset.voxel = place;
    } catch (problem) {
      if (problem.name === "AbortError") return;
      showText("not read", []);
      showProblem(problem);
    }
  };
  state.addEventListener("change", () => {
    if (placeOf(shownMasks()) === shownPlace) return;
    delete status.dataset.voxel;
    shownPlace = "";
    showText("\u2026", []);
    read();
  });
  showText("\u2026", []);
  read();
}

/** Fill the toolbar above the planes: windows, layouts, zoom. */
function addTools(source, state, stage) {
  const windows = Object.keys(source.facts.windows).map((name, i) => {
    const button = element(
      "button",
      { type: "button", "data-window": name, title: `${source.facts.windows[name].join(" to ")} HU (${i + 1})` },
      WINDOW_TITLES[name] ?? name,
    );
    button.addEventListener("click", () => state.setWindow(name));
    return button;
  });
  byId("windows").append(...windows);
  const layouts = Object.entries(LAYOUTS).map(([name, title]) =>
    element(
      "button",
      { type: "button", "data-layout": name, onclick: () => state.set({ layout: name, plane: PLANES[name] ? name : state.plane }) },
      title,
    ),
  );
  byId("layouts").append(...layouts);
  const [low, high] = [byId("window-low"), byId("window-high")];
  const setWindow = () => {
    const window = [Number(low.value), Number(high.value)];
    const isValid = window[0] < window[1];
    high.setCustomValidity(isValid ? "" : "The HU of white must be above the HU of black.");
    if (isValid) state.set({ window, windowName: null });
    else high.reportValidity();
  };
  low.addEventListener("change", setWindow);
  high.addEventListener("change", setWindow);
  byId("smooth").addEventListener("click", () => state.set({ isNearest: !state.isNearest }));
  byId("zoom-in").addEventListener("click", () => stage.zoom(ZOOM_STEP));
  byId("zoom-out").addEventListener("click", () => stage.zoom(1 / ZOOM_STEP));
  byId("zoom-fit").addEventListener("click", () => stage.zoomFit());
  stage.addEventListener("shown", () => {
    byId("zoom-fit").textContent = `${Math.round(100 * stage.camera.zoom)} %`;
  });
  const show = () => {
    for (const button of windows) {
      button.setAttribute("aria-pressed", String(button.dataset.window === state.windowName));
    }
    for (const button of layouts) {
      button.setAttribute("aria-pressed", String(button.dataset.layout === state.layout));
    }
    byId("smooth").setAttribute("aria-pressed", String(!state.isNearest));
    [low.value, high.value] = state.window.map(String);
  };
  state.addEventListener("change", show);
  show();
}

/** Show the level, and the button for full detail. */
function addDetail(source, state, stage) {
  const full = byId("full");
  const progress = byId("progress");
  const show = () => {
    const level = stage.volume?.levelIndex;
    if (level === null || level === undefined) return;
    byId("detail").hidden = false;
    const { spacing } = source.levels[level];
    const size = spacing.map((mm) => numberText(mm, 1)).join(" \u00d7 ");
    byId("level").textContent =
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
    showProblem(problem);
  }
}

/** Ids of the scans of the list from which this page was opened, in its order; null without a list. */
async function listedScanIds(state) {
  if (state.list === null) return null;
  const { ScanIndex, parseState } = await import("./list_state.js");
  const { scans } = await requestJson(`/v1/${encodeURIComponent(store)}/scans`);
  const ids = new ScanIndex(scans).select(parseState(state.list)).map((at) => scans[at].scan_id);
  return ids.includes(scanId) ? ids : null;
}

/** Set the links to the previous and next scan, which keep the state of the view. */
async function addNeighbors(source, state) {
  // Without a list, the order is that of the server.
  const ids = await listedScanIds(state).catch(() => null);
  const at = ids?.indexOf(scanId);
  const neighbors = ids ? { previous: ids[at - 1], next: ids[at + 1] } : source.facts;
  for (const id of ["previous", "next"]) {
    const scan = neighbors[id];
    const link = byId(id);
    link.hidden = false;
    if (!scan) {
      link.setAttribute("aria-disabled", "true");
      continue;
    }
    const address = () => {
      const query = new URLSearchParams({ window: state.windowName ?? state.window.join(",") });
      if (!state.areLabelsOn) query.set("labels", "false");
      if (state.mask !== (source.facts.masks[0]?.name ?? null)) query.set("mask", state.mask);
      if (state.outline !== null) query.set("outline", state.outline);
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
  if (ids) byId("position").textContent = `${at + 1} of ${ids.length}`;
  if (state.list !== null) {
    byId("store").href = `/?store=${encodeURIComponent(store)}&${state.list}`;
  }
}

/** Copy a text. */
async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages without TLS have no Clipboard API, but a selection can be copied.
    const field = element("textarea", { class: "hidden-text" });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), COPIED_MS);
}

/** Fill the menu of other programs that open this scan. */
async function addOpenIn(source) {
  const list = byId("open-in-list");
  const button = byId("open-in-button");
  const { options } = await requestJson(`${source.path}/open-in`);
  for (const option of options) {
    const isLink = option.kind === "link";
    const copyButton = element("button", { type: "button" }, "Copy");
    copyButton.addEventListener("click", () => copy(option.text, copyButton));
    const action = isLink ? element("a", { class: "button", href: option.text }, "Open") : copyButton;
    const name = element("div", { class: "name" }, option.name, element("span", { class: "space" }), action);
    const text = isLink ? null : element("pre", { tabindex: "0" }, option.text);
    list.append(element("div", {}, name, element("p", { class: "quiet" }, option.hint), text));
  }
  byId("open-in").hidden = options.length === 0;
  const toggle = (isOpen) => {
    list.hidden = !isOpen;
    button.setAttribute("aria-expanded", String(isOpen));
  };
  button.addEventListener("click", () => toggle(list.hidden));
  document.addEventListener("pointerdown", (event) => {
    if (!byId("open-in").contains(event.target)) toggle(false);
  });
  byId("open-in").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    toggle(false);
    button.focus();
  });
}

/** Fill the next mask of the scan. */
function nextMask(source, state) {
  const names = source.facts.masks.map(({ name }) => name);
  if (names.length > 1) state.setMask(names[(names.indexOf(state.mask) + 1) % names.length]);
}

/** Add the keys of the whole page. */
function addKeys(source, state, stage) {
  const windows = Object.keys(source.facts.windows);
  const clickLink = (id) => () => byId(id).href && byId(id).click();
  const slices = (count) => () => state.step(PLANES[state.plane].flat, count);
  const keys = {
    n: clickLink("next"),
    p: clickLink("previous"),
    o: () => state.set({ hasOutlines: !state.hasOutlines }),
    l: () => state.set({ areLabelsOn: !state.areLabelsOn }),
    m: () => nextMask(source, state),
    i: () => state.set({ isNearest: !state.isNearest }),
    f: () => loadFull(state, stage),
    "+": () => stage.zoom(ZOOM_STEP),
    "=": () => stage.zoom(ZOOM_STEP),
    "-": () => stage.zoom(1 / ZOOM_STEP),
    0: () => stage.zoomFit(),
    "?": () => byId("help").showModal(),
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
    if (byId("help").open) return;
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
  byId("help-button").addEventListener("click", () => byId("help").showModal());
}

async function main() {
  byId("title").textContent = scanId;
  byId("store").textContent = store;
  byId("store").href = `/?store=${encodeURIComponent(store)}`;
  document.title = `${scanId} \u2013 ${store}`;
  let source;
  try {
    source = await openScan(store, scanId);
  } catch (problem) {
    showProblem(problem, true);
    return;
  }
  performance.mark("facts");
  const state = new ScanState(source, new URLSearchParams(location.search));
  byId("scan").hidden = false;
  const stage = new Stage(byId("stage"), source, state);
  const panel = new Panel(byId("panel"), source, state);
  addTools(source, state, stage);
  addDetail(source, state, stage);
  addNeighbors(source, state);
  addKeys(source, state, stage);
  byId("copy").addEventListener("click", () => copy(location.href, byId("copy")));
  const remember = () => history.replaceState(null, "", `?${state.query}`);
  state.addEventListener("change", remember);
  remember();
  stage.addEventListener("problem", ({ detail }) => showProblem(detail));
  await stage.firstView;
  showVoxelValues(source, state);
  addOpenIn(source).catch(showProblem);
  if (!Stage.canDrawVolumes) {
    stage.explainMissingVolumes();
    panel.hideLabelControls();
    return;
  }
  try {
    await stage.startVolumes();
  } catch (problem) {
    showProblem(problem);
  }
}

main();
