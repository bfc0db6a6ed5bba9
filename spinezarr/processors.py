"""How many threads can compute at once here?

``os.cpu_count()`` counts the processors of the machine. A job of SLURM, a container or ``taskset``
may use fewer, and more threads than that only wait for each other.
"""

__all__ = ["cpu_count"]


def cpu_count() -> int:
    """Return how many processors this process may use, at least 1.

    It is the smallest of three numbers: the processors of the machine, those that the process is
    bound to (its affinity), and the quota of its control group (cgroup v1 or v2), rounded up.
    Affinity and quota may change while a process runs, so ask when a pool is made, not on import.
    """
    # dask takes long to import, and `import spinezarr` computes nothing.
    from dask.system import cpu_count as usable_cpus  # noqa: PLC0415

    return max(1, usable_cpus())
