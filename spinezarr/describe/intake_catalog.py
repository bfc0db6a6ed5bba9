"""How is a dataset described as a catalog of intake, version 2?

The catalog has an entry for the scan table and one for each scan, under their keys in the store.

References
----------
https://intake.readthedocs.io/en/latest/api2.html
"""

import hashlib
from typing import Any, Final

import yaml

from spinezarr.describe.description import DatasetDescription
from spinezarr.store.layout import TABLE, scan_key
from spinezarr.text import to_printable

__all__ = ["intake_yaml"]

_DATA_TYPE: Final = "intake.readers.datatypes:Zarr"
_READER: Final = "intake.readers.readers:XArrayDatasetReader"


def intake_yaml(dataset: DatasetDescription) -> str:
    """Return the catalog of a dataset as YAML."""
    urls = {TABLE: dataset.table_url}
    urls |= {scan_key(scan_id): dataset.scan_url(scan_id) for scan_id in dataset.scan_ids}
    data: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    for name, url in urls.items():
        token = hashlib.sha256(url.encode()).hexdigest()[:16]
        data[f"data{token}"] = {
            "datatype": _DATA_TYPE,
            "kwargs": {"url": url, "storage_options": None, "root": ""},
            "metadata": {},
            "user_parameters": {},
        }
        entries[token] = {
            "reader": _READER,
            "kwargs": {"args": [f"{{data(data{token})}}"], "chunks": {}},
            "output_instance": "xarray:Dataset",
            "metadata": {},
            "user_parameters": {},
        }
        aliases[name] = token
    root = dataset.root
    facts = {
        "title": root.title,
        "license": root.license,
        "citation": root.citation,
        "homepage": root.homepage or "",
        "store": dataset.url,
    }
    catalog = {
        "version": 2,
        "aliases": aliases,
        "data": data,
        "entries": entries,
        "metadata": {name: to_printable(text) for name, text in facts.items()},
        "user_parameters": {},
    }
    return yaml.safe_dump(catalog, sort_keys=False, allow_unicode=True, width=1000)
