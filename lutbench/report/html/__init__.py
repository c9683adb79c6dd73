"""The report: a suite's tables, charts and pictures as one HTML file that needs no network."""
