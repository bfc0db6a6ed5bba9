"""The batches of an epoch in order: units, ranks, workers, checkpoints, reading ahead."""
