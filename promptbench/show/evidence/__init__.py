"""Pages of evidence, one module each: what stored results say of one question, with an interval for every finding.

A module has `page(asked) -> str`: a Markdown page of a title, one sentence of finding with its interval, and tables.
"""
