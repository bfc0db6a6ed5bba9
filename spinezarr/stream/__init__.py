"""Random patches out of a store: draw → plan → fetch → decode → batch."""
