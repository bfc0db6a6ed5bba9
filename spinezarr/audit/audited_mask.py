"""Which mask of a scan is audited, and what do the rules see of it?

The rules read the vertebrae, other labels and source of ``label`` from the attributes of a scan.
For a further mask, they get attributes in which those of the mask take their place.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.layout import LABEL
from spinezarr.store.records import LabelRecord, VertebraRecord
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.vertebrae import NAME_OF_VALUE, VALUE_OF_NAME

__all__ = ["AuditedMask"]


@dataclass(frozen=True, slots=True)
class AuditedMask:
    """A mask of a scan that is audited."""

    facts: ScanAttributes
    """Attributes of the scan, with what is known of the mask in the place of ``label``."""
    array: ArraySpec | None
    """None if the scan has no such mask."""
    vertebra_of_value: Mapping[int, str]
    """Vertebra of each value that is one."""

    @classmethod
    def of(cls, scan: ScanHandle, name: str) -> "AuditedMask":
        """Return the mask of a name, which a scan may lack."""
        if name == LABEL:
            return cls(scan.attributes, scan.label, NAME_OF_VALUE)
        record = scan.attributes.masks.get(name)
        labels = {} if record is None else record.labels
        vertebrae = {value: label for value, label in labels.items() if label.name in VALUE_OF_NAME}
        others = {value: label for value, label in labels.items() if value not in vertebrae}
        state = "predicted" if record is not None and record.model else "unknown"
        facts = scan.attributes.model_copy(
            update={
                "label_state": "none" if record is None else state,
                "vertebrae": {label.name: _measured(label) for label in vertebrae.values()},
                "other_labels": {value: label.voxel_count for value, label in others.items()},
                "structures": {value: label.name for value, label in others.items() if label.name},
                "label_source": None if record is None else record.source,
            }
        )
        return cls(
            facts,
            scan.masks.get(name),
            {int(value): label.name for value, label in vertebrae.items()},
        )


def _measured(label: LabelRecord) -> VertebraRecord:
    return VertebraRecord.model_validate(label.model_dump(exclude={"name"}))
