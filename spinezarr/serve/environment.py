"""Which environment variables do the processes of a server share?"""

from typing import Final

__all__ = ["METRICS_FOLDER", "SETTINGS"]

METRICS_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder in which processes share their metrics.

The package prometheus_client reads it at import, so it must be set before.
"""
SETTINGS: Final = "SPINEZARR_SERVE_SETTINGS"
"""Environment variable with the settings for worker processes, as JSON."""
