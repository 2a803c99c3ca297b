"""The report page: tables, plots and the runs behind every figure in one file that needs nothing else."""
