"""Scores of images, one per module: how much an image looks as if it were of one of the classes; see `metrics.ood`."""
