"""The report: a diagnosis in words, as a table and as a page."""
