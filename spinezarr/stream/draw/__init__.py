"""Which patches an epoch has: every draw is a pure function of (seed, epoch, index)."""
