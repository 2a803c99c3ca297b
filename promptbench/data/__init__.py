"""Images on disk become batches: datasets, splits, samples, transforms, features."""
