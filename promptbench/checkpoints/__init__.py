"""What was trained, used: loaded, exported, shared; the authors' own files read."""
