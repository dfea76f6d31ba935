"""What is shown: a comparison in the terminal, in files for further work, and as one page to read.

results, runs --terminal--> ranked table
              --folder----> results.json, predictions.csv, roc and pr as SVG and PNG (plots), report.html (html_page)
"""
