"""Which patches does an epoch have? Every draw is a pure function of (seed, epoch, index)."""
