"""train-heads on Ray: a task per head and backbone, on all cores of a machine or of a cluster that share the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from features.options import FeatureOptions
from features.progress import heard, say, shown
from features.ray_cluster import Home, cluster, load_ray, results
from features.request import open_features
from models.runs.features import Stage
from models.runs.options import HeadOptions, RunOptions

_CORES = 4  # of one task, where there are so many


class Order(NamedTuple):
    """One run to be trained, as it was asked for."""

    term: str  # the backbones of the view
    head: str
    features: FeatureOptions
    view: HeadOptions
    run: RunOptions
    seeds: int = 1


def train_on_ray(orders: Sequence[Order]) -> None:
    """Train all runs, wherever there is room; what was trained stays, whatever happens to the others.

    A task whose worker dies is given to another one. Raises FirnError where Ray is not installed, and the first error
    of a task.
    """
    if not orders:
        return
    ray = load_ray()
    with cluster(ray) as resources, shown(f"train {len(orders)} runs on Ray", "runs") as progress:
        cores = min(_CORES, int(resources.get("CPU", 1)))
        tasks = results(ray, work, [(order, Home.here()) for order in orders], cores=cores)
        for done, (_, lines) in enumerate(tasks, start=1):
            for line in lines:
                say(line)
            progress(done, len(orders))


def work(order: Order, home: Home) -> list[str]:
    """Train one run and return the lines that were said; in a worker, whose threads Ray has numbered."""
    home.enter()
    with heard() as lines:
        data = order.features.data
        stage = Stage(open_features(data.load(), order.features, order.term), data, order.run)
        stage.train(order.head, order.view.blocks, order.view.pool, insist=order.view.insist, seeds=order.seeds)
    return lines
