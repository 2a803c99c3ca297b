"""open_clip's models, opened for prompts: towers, blocks, prompts, weights."""
