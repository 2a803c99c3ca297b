"""Comparison tables: rows from results, tables from rows, text from tables."""
