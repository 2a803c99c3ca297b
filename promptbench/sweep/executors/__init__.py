"""Where the runs of a call are done: on this machine, on a Ray cluster, by Slurm. A module each, found by its name."""
