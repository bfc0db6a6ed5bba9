"""How is a dataset described in Croissant, the vocabulary of MLCommons?

A record is a scan. Its fields come from the list of scans, and one of them is the URL of its Zarr
group, because Croissant has no format of its own for Zarr.

References
----------
https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

import hashlib
from typing import Any, Final

from spinezarr.describe.description import (
    SCAN_COLUMNS,
    SCAN_LIST,
    DatasetDescription,
    ScanColumn,
    license_link,
)
from spinezarr.text import to_ascii_json, to_printable

__all__ = ["croissant_json"]

_CONFORMS_TO: Final = "http://mlcommons.org/croissant/1.0"
_CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context of Croissant, as its own datasets have it."""
_RECORDS: Final = "scans"
_DATA_TYPES: Final = {
    "text": "sc:Text",
    "integer": "sc:Integer",
    "number": "sc:Float",
    "url": "sc:URL",
}


def croissant_json(dataset: DatasetDescription, version: str) -> str:
    """Return the description of a dataset as JSON-LD.

    Parameters
    ----------
    dataset
        The dataset.
    version
        Version of the description, as in ``1.0.0``.
    """
    root = dataset.root
    link = license_link(root.license, root.homepage)
    optional = {"url": root.homepage, "license": link or root.license, "citeAs": root.citation}
    n = len(dataset.scan_ids)
    metadata = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": to_printable(root.dataset),
        "alternateName": to_printable(root.title),
        "description": f"{to_printable(root.title)}: {n} CT scans of the spine as a Zarr v3 store "
        f"at {dataset.url}, with masks of vertebrae.",
        "conformsTo": _CONFORMS_TO,
        "version": version,
        **{name: to_printable(text) for name, text in optional.items() if text},
        "keywords": ["CT", "spine", "vertebra", "segmentation", "Zarr"],
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": SCAN_LIST,
                "name": SCAN_LIST,
                "description": "A list of the scans.",
                "contentUrl": SCAN_LIST,
                "encodingFormat": "text/csv",
                "sha256": hashlib.sha256(dataset.scan_list().encode()).hexdigest(),
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": _RECORDS,
                "name": _RECORDS,
                "description": "One record for each scan.",
                "key": {"@id": f"{_RECORDS}/scan"},
                "field": [_field(column) for column in SCAN_COLUMNS],
            }
        ],
    }
    return f"{to_ascii_json(metadata)}\n"


def _field(column: ScanColumn) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{_RECORDS}/{column.name}",
        "name": column.name,
        "description": column.description,
        "dataType": _DATA_TYPES[column.kind],
        "source": {"fileObject": {"@id": SCAN_LIST}, "extract": {"column": column.name}},
    }
