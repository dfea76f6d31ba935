"""report: what a comparison looks like, in the terminal, in files for further work, and as one page to read.

results, runs --terminal--> ranked table
              --folder----> results.json, predictions.csv, roc and pr as SVG and PNG (plots), report.html (page)
`report` is the verb: it makes the comparison, the gallery of errors (pipeline.gallery), and the page with all there is.
"""

from pipeline.report.folder import write_report
from pipeline.report.terminal import print_table
from pipeline.report.verb import report

__all__ = ["print_table", "report", "write_report"]
