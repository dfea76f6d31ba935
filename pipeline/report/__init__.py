"""What a comparison looks like: in the terminal, in files for further work, and as one page to read.

results, runs --terminal--> ranked table
              --folder----> results.json, predictions.csv, roc and pr as SVG and PNG (plots), report.html (page)
"""

from pipeline.report.folder import write_report
from pipeline.report.terminal import print_table

__all__ = ["print_table", "write_report"]
