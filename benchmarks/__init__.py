"""The suites that ship with the package, one YAML file each, read by `promptbench.suite.load_suite`."""
