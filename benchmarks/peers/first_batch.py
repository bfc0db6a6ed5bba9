"""Measures the seconds from opening a store to its first batch, and from the start of Python.

Arguments are the store, and optionally the number of patches of the epoch; the default is 64.
"""

import json
import sys
import time


def main() -> None:
    """Open the given store, and read one batch of two 128³ patches."""
    began, (store, *epoch) = time.perf_counter(), sys.argv[1:]
    import spinezarr.api  # noqa: PLC0415  the import is timed

    imported = time.perf_counter()
    stream = spinezarr.open(store).patches(128, batch_size=2, n_samples=int(*epoch or [64]))
    batch = next(iter(stream))
    done = time.perf_counter()
    print(json.dumps({"open_s": done - imported, "import_s": imported - began, "n": len(batch)}))


if __name__ == "__main__":
    main()
