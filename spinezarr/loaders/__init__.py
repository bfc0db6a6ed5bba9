"""How do training libraries get their samples from a store? Most modules need such a library."""
