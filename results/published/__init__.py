"""Figures published in papers, one CSV file a source, never mixed with measured ones."""
