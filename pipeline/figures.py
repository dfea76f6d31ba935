"""figures: all runs of a data set -> what a paper takes: figures, tables, and the methods with every number."""

from __future__ import annotations

from features.datasets.columns import further_columns
from features.storage import artifacts_root, csv_lines, write_whole
from models.runs.compare import compare_runs, runs_by_name
from models.runs.examination import ExaminationOptions
from pipeline.compare import Compared, MarginOptions, PageOptions


def figures(runs: Compared, how: ExaminationOptions, against: MarginOptions, page: PageOptions) -> list[str]:
    """Write figures as PDF, SVG and PNG, tables as CSV and LaTeX, and methods.md; return the folder.

    What `compare` finds, drawn at a column's width; the learning curve and the class activation maps where
    `learning-curve` and `report` have made them of the same images. Raises CacheError where there is no run.
    """
    from pipeline.render.html_page import load_extras
    from pipeline.render.methods import methods
    from pipeline.render.paper import captions, draw_figures
    from pipeline.render.tables import paper_tables

    found = runs.load_all()
    columns = further_columns(runs.data.load(), how.columns)
    results = compare_runs(found, how, columns, seed=runs.data.seed, margin=against.margin, title=page.title)
    beside = artifacts_root() / "compare" / found[0].record.root.name
    chosen = runs_by_name(found)[results.chosen.name]
    extras, folder, drawn = load_extras(beside, results, chosen), beside / "figures", dict[str, None]()
    for name, content in draw_figures(results, found, extras.learning, extras.gallery):
        write_whole(folder / name, [content])
        drawn[name.partition(".")[0]] = None
    for name, table in paper_tables(results).items():
        write_whole(folder / f"{name}.csv", [csv_lines([table.header, *table.rows])])
        write_whole(folder / f"{name}.tex", [table.latex(name).encode()])
    words = f"{methods(results)}\n## Captions\n\n{captions(results, list(drawn))}"
    write_whole(folder / "methods.md", [words.encode()])
    return [f"{len(drawn)} figures, each as PDF, SVG and PNG: {', '.join(drawn)}", str(folder / "methods.md")]
