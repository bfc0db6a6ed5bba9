"""Scripts that measure the page of a list in a browser."""

__all__ = ["CONTRASTS", "CUT"]

CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
  };
  const over = (top, ground) => [0, 1, 2].map((i) => top[i] * top[3] + ground[i] * (1 - top[3]));
  const ground = (one) => {
    if (!one) return [1, 1, 1];
    const color = rgba(getComputedStyle(one).backgroundColor);
    return color[3] === 1 ? color : over(color, ground(one.parentElement));
  };
  const light = (color) => {
    const [r, g, b] = color.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = {};
  for (const one of document.querySelectorAll("body *")) {
    const hasText = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const isShown = one.checkVisibility() && !one.closest(":disabled, .hidden-text, option");
    if (!hasText || !isShown) continue;
    const behind = ground(one);
    const color = over(rgba(getComputedStyle(one).color), behind);
    const [a, b] = [light(color), light(behind)].sort((x, y) => y - x);
    const name = `${one.tagName} ${one.className} ${one.textContent.slice(0, 30)}`;
    found[name] = (a + 0.05) / (b + 0.05);
  }
  return found;
}"""


CUT = """() => [...document.querySelectorAll("html, .scans, .store, .tools, button, .shown, h2")]
  .filter((one) => one.checkVisibility() && one.scrollWidth > one.clientWidth + 1)
  .map((one) => one.outerHTML.slice(0, 120))"""
