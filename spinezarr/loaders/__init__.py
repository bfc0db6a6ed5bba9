"""Streams in the form that training libraries expect; each module needs its own library."""
