"""Tasks on Ray, for more than one process or machine; a task is done again when its worker dies.

All machines see one file system. Without $RAY_ADDRESS a local Ray lives for as long as it takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from features.errors import FirnError
from features.version import install_command

TRIES = 3  # of a task after its worker died
_LOCAL_STORE = 128 << 20  # bytes of shared memory of a local Ray; neither images nor features go through it


class Home(NamedTuple):
    """Where a command was given: what a worker elsewhere has to know to mean the same by a path."""

    place: str  # the folder from which paths are meant
    variables: Mapping[str, str]  # FIRN_*

    @staticmethod
    def here() -> Home:
        """Return that of this process."""
        variables = {name: value for name, value in os.environ.items() if name.startswith("FIRN_")}
        return Home(str(Path.cwd()), variables)

    def enter(self) -> None:
        """Work from there; in a worker."""
        os.chdir(self.place)
        os.environ.update(self.variables)


def load_ray() -> Any:
    """Return the module. Raises FirnError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise FirnError(
            f"ENGINE=ray needs Ray, which is not installed; run: {install_command('ray')}, or leave ENGINE= away"
        ) from None
    return ray


@contextmanager
def cluster(ray: Any) -> Iterator[Mapping[str, float]]:
    """Give the resources of the cluster at $RAY_ADDRESS, or of one that lives on this machine during the block."""
    root = str(Path(__file__).parents[__name__.count(".")])  # the folder of `features`, or of an installed `firn`
    options: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": root, "OMP_WAIT_POLICY": "PASSIVE"}}}
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells nobody that it runs
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": _LOCAL_STORE}
    ray.init(log_to_driver=False, logging_level="ERROR", **options)
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def results(
    ray: Any, work: Callable[..., Any], orders: Sequence[tuple[Any, ...]], *, cores: int, gpus: int = 0
) -> Iterator[tuple[int, Any]]:
    """Run a task work(*order) per order and yield (number of the order, what came of it), whichever is done first.

    Raises the first error of a task; FirnError where one cost its worker's life again and again.
    """
    task = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=TRIES)(work)
    running = {task.remote(*order): i for i, order in enumerate(orders)}
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        try:
            yield running.pop(ready), ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise FirnError(f"a task was lost {TRIES + 1} times ({reason}); run the same command again") from None
