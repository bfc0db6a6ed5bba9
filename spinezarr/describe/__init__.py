"""A dataset described for other catalogs: a dataset card, Croissant, and an intake catalog."""
