"""Which parts of a store are damaged, so that a run with ``--repair`` writes them again?"""

from collections.abc import Mapping
from typing import Any

from spinezarr.ingestion.run import Damage
from spinezarr.progress import OnProgress, ProgressCounter
from spinezarr.text import count_noun
from spinezarr.verify.store import verify_store

__all__ = ["find_damage"]


def find_damage(url: str, storage_options: Mapping[str, Any], on_progress: OnProgress) -> Damage:
    """Check a store, and return its damaged scans and masks."""
    counter = ProgressCounter(on_progress, "check")
    verification = verify_store(
        url,
        storage_options=storage_options,
        on_total=counter.expect,
        on_bytes=counter.add,
    )
    counter.say(
        f"The check found {count_noun(len(verification.faults), 'fault')}, in "
        f"{count_noun(len(verification.damaged_scans), 'scan')}."
    )
    return Damage(verification.damaged_scans, verification.damaged_masks)
