/* The order in which a list shows scans, for pages of scans that are opened from it. */

import { askJson } from "./common.js";
import { ScanIndex, parseState } from "./list_state.js";

/**
 * Find the scans beside one, as the list shows them that it was opened from.
 * @param {string} store name
 * @param {string} scanId of the scan
 * @param {string} list what the link from the list says behind "list="
 * @returns {Promise<{previous: ?string, next: ?string}>} null at the ends, and where the list does
 *   not show the scan (any more)
 */
export async function neighborsOf(store, scanId, list) {
  const { scans } = await askJson(`/v1/${encodeURIComponent(store)}/scans`);
  const order = new ScanIndex(scans).select(parseState(`?${list}`)).map((at) => scans[at].scan_id);
  const at = order.indexOf(scanId);
  return { previous: order[at - 1] ?? null, next: (at < 0 ? null : order[at + 1]) ?? null };
}

/** URL of that list. */
export function listUrl(store, list) {
  return `/?${new URLSearchParams({ store })}${list ? `&${list}` : ""}`;
}
