"""How do the values of a file or an array become a further mask of a stored scan?"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from spinezarr.formats.volume import Volume
from spinezarr.geometry import Grid
from spinezarr.ingestion.labels import label_chunks, label_summaries
from spinezarr.ingestion.scan import label_notes
from spinezarr.ingestion.voxels.chunks import LabelEncoder, LabelFacts
from spinezarr.ingestion.voxels.encode import encode_volume
from spinezarr.ingestion.voxels.memory import MemoryBudget, Workspace
from spinezarr.label_schemes import LabelScheme
from spinezarr.resources import package_version
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.mask_writer import MaskWriter
from spinezarr.store.records import MaskRecord

__all__ = ["MaskFacts", "MaskSource", "write_mask"]

_UNNAMED_NOTE = "values without a name in the scheme {}: {}"


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """What a user says about a further mask."""

    scheme: LabelScheme
    """Names of its values."""
    license: str = ""
    """License of the mask, an SPDX identifier where there is one; empty if it is not known."""
    author: str = ""
    """Who made or annotated the mask; empty if it is not known."""
    model: str = ""
    """Program or network that made the mask, with its version; empty if there is none."""

    def to_record(self) -> dict[str, str]:
        """Return the fields that are stored as they are, by name."""
        return {
            "scheme": self.scheme.name,
            "license": self.license,
            "author": self.author,
            "model": self.model,
        }


@dataclass(frozen=True, slots=True)
class MaskSource:
    """Where the voxels of a mask come from."""

    volume: Volume
    grid: Grid
    """Grid whose axis directions determine the order of the stored axes."""
    describe: Callable[[], dict[str, Any] | None] = lambda: None
    """Returns the record of the file, once it was read to its end; None for an array."""
    key: str = ""
    """Hash of the file and of the way in which it is read; empty for an array."""
    notes: Sequence[str] = field(default=())
    """Remarks on the file for the user."""


def write_mask(
    writer: MaskWriter,
    facts: MaskFacts,
    source: MaskSource,
    *,
    pool: Executor,
    memory: MemoryBudget,
    scratch: str | None,
    on_voxels: Callable[[int], None] = lambda _: None,
) -> ScanAttributes:
    """Encode a mask slab by slab, and publish it.

    Parameters
    ----------
    writer
        Writes the mask. Whatever it has written is deleted if this fails.
    facts
        What the user says about the mask.
    source
        Voxels of the mask, on the grid of the scan.
    pool
        Threads that encode chunks.
    memory
        Memory that may be used.
    scratch
        Folder for scratch files.
    on_voxels
        Called with the number of voxels that were read, for progress.

    Returns
    -------
    ScanAttributes
        The published attributes of the scan.

    Raises
    ------
    LabelError
        If a value is not a whole number from 0 to 255; the store is then as it was before.
    """
    encoder = LabelEncoder(writer.profile)
    try:
        chunks = encode_volume(
            source.volume,
            source.grid,
            encoder,
            profile=writer.profile,
            write_shard=writer.write_shard,
            pool=pool,
            on_voxels=on_voxels,
            workspace=Workspace(memory, scratch),
        )
        notes = [*source.notes, *label_notes(source.volume, chunks, encoder.rounding)]
        record = _record(facts, source, chunks, encoder.rounding.voxels, notes)
        return writer.publish(record, label_chunks(chunks))
    except BaseException:
        writer.discard()
        raise


def _record(
    facts: MaskFacts,
    source: MaskSource,
    chunks: Sequence[LabelFacts],
    rounded_voxels: int,
    notes: list[str],
) -> MaskRecord:
    names = facts.scheme.names
    summaries = label_summaries(chunks)
    unnamed = [str(value) for value in summaries if value not in names]
    if unnamed:
        notes.append(_UNNAMED_NOTE.format(facts.scheme.name, ", ".join(unnamed)))
    file = source.describe()
    if file is not None:
        file = {**file, "parts": (), "values": (), "rounded_voxels": rounded_voxels}
    return MaskRecord.model_validate(
        {
            **facts.to_record(),
            "labels": {
                str(value): {**summary.to_record(), "name": names.get(value, "")}
                for value, summary in summaries.items()
            },
            "source": file,
            "source_key": source.key,
            "written_by": f"spinezarr {package_version()}",
            "notes": tuple(notes),
        }
    )
