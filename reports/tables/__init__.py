"""The tables of a report, as HTML, Markdown, LaTeX and CSV."""
