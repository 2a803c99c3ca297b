"""What a GPU does of promptbench, measured and checked: `python -m promptbench.benchmarks.gpu`."""
