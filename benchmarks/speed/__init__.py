"""How fast promptbench is against the plain path: what the official code computes, in one interleaved run."""
