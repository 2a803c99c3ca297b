"""The mini suite: a rendered few-shot benchmark and a tiny CLIP that fit in the package and run on a laptop."""
