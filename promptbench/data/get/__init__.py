"""What `promptbench data` does: where the datasets are, what they lack, and how to get them."""
