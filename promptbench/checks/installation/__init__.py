"""What `promptbench verify` checks: reference numbers, split files, few-shot samples, figures of papers."""
