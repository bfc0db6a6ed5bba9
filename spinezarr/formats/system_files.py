"""Files and folders that operating systems and programs leave among others: no data of anyone."""

from typing import Final

__all__ = ["is_of_system"]

_SYSTEM_FILES: Final = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
_SYSTEM_FOLDERS: Final = frozenset(
    {"__macosx", ".spotlight-v100", ".fseventsd", ".trashes", ".temporaryitems"}
    | {"$recycle.bin", "system volume information", "lost+found", "@eadir", "#recycle"}
    | {".git", ".cache"}
)
"""Of macOS, Windows, Linux, Synology's disks, Git and the caches of download programs."""
_TRASH: Final = ".trash-"


def is_of_system(name: str, *, folder: bool = False) -> bool:
    """Whether a file or folder is one that operating systems and programs leave among others.

    Examples
    --------
    >>> is_of_system("._liver_0.nii.gz"), is_of_system("Thumbs.db"), is_of_system("liver_0.nii.gz")
    (True, True, False)
    >>> is_of_system("__MACOSX", folder=True), is_of_system("lost+found", folder=True)
    (True, True)
    """
    lowered = name.lower()
    if folder:
        return lowered in _SYSTEM_FOLDERS or lowered.startswith(_TRASH)
    return lowered.startswith("._") or lowered in _SYSTEM_FILES
