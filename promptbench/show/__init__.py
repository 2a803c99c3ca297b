"""Tables, plots and reports: functions of stored results."""
