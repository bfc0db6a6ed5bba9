// Reads arrays as zarrita does and prints the SHA-256 of their voxels, C order, little-endian.
// node zarrita.mjs '{"urls": [...], "token": ..., "suffix": ...}'
import { createHash } from "node:crypto";
import * as zarr from "zarrita";

const asked = JSON.parse(process.argv[2]);
const headers = asked.token ? { Authorization: `Bearer ${asked.token}` } : {};
const found = {};
for (const url of asked.urls) {
  const options = { useSuffixRequest: asked.suffix, overrides: { headers } };
  const array = await zarr.open.v3(zarr.root(new zarr.FetchStore(url, options)), { kind: "array" });
  const { data } = await zarr.get(array);
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  found[url] = createHash("sha256").update(bytes).digest("hex");
}
console.log(JSON.stringify(found));
