"""From requests to a batch: plan the chunks, fetch their bytes, decode them, resample."""
