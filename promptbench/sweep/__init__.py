"""Many runs: which are left, what they take, doing them here or elsewhere."""
