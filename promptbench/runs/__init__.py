"""One run: what was asked for, what follows from it, doing it, evaluating it."""
