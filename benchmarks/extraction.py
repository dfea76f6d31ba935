"""How fast is extraction, against the loop that everyone writes and against the machine itself?

    python -m benchmarks.extraction [--quick] [--only loop large several memory fidelity gpu projection]

Needs real pictures below FIRN_DATA (pneumonia, radiographs_fullsize, for fidelity colon and cervical) and weights in
FIRN_WEIGHTS. Every ratio is the median of several, each of two things done in turn in this one process. The loop keeps
only the average of the last block; Firn keeps average and maximum of every block, digests each picture, and syncs. The
stage limit is what the stages take when each is done alone on the same pictures: their sum on a CPU, where they share
the cores, the slowest with a GPU. "wall" is time; "cores" is the processor time of all threads and processes, which is
steadier where the cores are shared with other work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np

from benchmarks import stages
from benchmarks.stages import Spent, median, spent

BACKBONES = ["alexnet", "resnet18", "resnet50", "mobilenet_v3_small", "squeezenet1_1"]
SEVERAL = ["alexnet", "resnet18", "squeezenet1_1"]
LIGHT = "alexnet"
BARS = {"float32": 1.4, "bfloat16": 3.0, "float16": 3.0}
GPU_BARS = {"resnet18": 36_000, "resnet50": 12_400, "resnet101": 7_600}
LIMIT_BARS = {"cpu": 0.95, "cuda": 0.8}
HEADING = """| backbone | precision | pictures/s | the loop's | ratio, wall | cores | bar \
| of the stage limit, wall | cores | bar | share of decode, forward, write |
|---|---|---|---|---|---|---|---|---|---|---|"""
GPUS, TEN_MILLION = 8, 10_000_000


class Bench:
    """What the sections share: the folder, the size of the run, the device."""

    def __init__(self, folder: Path, quick: bool) -> None:
        from features.devices import device, precision

        self.folder, self.quick, self.device = folder, quick, device("auto")
        self.half = precision("auto", self.device)
        self.repeats, self.pictures = (1, 64) if quick else (3, 256)
        self.rates: dict[str, float] = {}  # of the projection

    def in_turn(self, works: dict[str, Callable[[], object]], pictures: int) -> dict[str, list[Spent]]:
        """Do every work once, again and again."""
        taken: dict[str, list[Spent]] = {name: [] for name in works}
        for _ in range(self.repeats):
            for name, work in works.items():
                with stages.artifacts(self.folder / "artifacts"):
                    taken[name].append(spent(work, pictures))
        return taken

    def precisions(self) -> list[str]:
        """Return float32 and, where the hardware has it, half precision."""
        return list(dict.fromkeys(["float32", self.half]))


def ratio(of: list[Spent], to: list[Spent]) -> str:
    """Return how many times as long one took as the other: median of the repeats, by wall and by processor."""
    return " | ".join(f"{np.median([a[i] / b[i] for a, b in zip(of, to, strict=True)]):.2f}" for i in (0, 1))


def against_loop(bench: Bench) -> None:
    """Print (a) and (b): end to end against the loop that everyone writes, and against the stage limit."""
    folder = stages.some_pictures(bench.folder / "pneumonia", bench.pictures)
    print(f"\n## End to end, {bench.pictures} pneumonia pictures of 224 x 224, device {bench.device}\n")
    print(HEADING)
    ratios: dict[str, list[float]] = {}
    for name in BACKBONES:
        for precision, wall in one_network(bench, folder, name, bench.precisions()).items():
            ratios.setdefault(precision, []).append(wall)
    for precision, values in ratios.items():
        print(f"median of the {len(values)}, {precision}: {np.median(values):.2f} (bar {BARS[precision]})")


def one_network(bench: Bench, folder: Path, name: str, precisions: list[str]) -> dict[str, float]:
    """Print a row per precision; return the ratios to the loop by wall."""
    out = bench.folder / "loop.h5"
    works: dict[str, Callable[[], object]] = {"loop": lambda: stages.everyones_loop(folder, name, out)}
    pictures = sum(1 for _ in folder.glob("*/*"))
    for precision in precisions:
        with stages.artifacts(bench.folder / "artifacts"):
            alone = stages.Alone(folder, [name], precision, bench.device)
        works[precision] = lambda p=precision: stages.firn(folder, [name], p, bench.device)
        works |= {f"{precision} {stage}": getattr(alone, stage) for stage in ("decode", "forward", "write")}
    taken = bench.in_turn(works, pictures)
    wall = {}
    for precision in precisions:
        best = stage_limit(taken, precision, bench.device)
        loop, ours = median(taken["loop"]), median(taken[precision])
        both = zip(taken["loop"], taken[precision], strict=True)
        wall[precision] = float(np.median([a.wall / b.wall for a, b in both]))
        rates = f"{1 / ours.wall:,.0f} | {1 / loop.wall:,.0f} | {ratio(taken['loop'], taken[precision])}"
        of_limit = f"{ratio(best, taken[precision])} | {LIMIT_BARS[bench.device]} | {shares(taken, precision)}"
        print(f"| {name} | {precision} | {rates} | {BARS[precision]} | {of_limit} |", flush=True)
        bench.rates |= {f"forward {name}": 1 / median(taken[f"{precision} forward"]).wall}
        bench.rates |= {stage: 1 / median(taken[f"{precision} {stage}"]).processor for stage in ("decode", "write")}
    return wall


def stage_limit(taken: dict[str, list[Spent]], name: str, device: str) -> list[Spent]:
    """Return what the stages done alone take together, repeat by repeat."""
    parts = zip(*(taken[f"{name} {stage}"] for stage in ("decode", "forward", "write")), strict=True)
    return [Spent(*(stages.limit(list(column), device) for column in zip(*p, strict=True))) for p in parts]


def shares(taken: dict[str, list[Spent]], name: str) -> str:
    """Return the stages' shares of what they take alone, in per cent of processor time."""
    alone = [median(taken[f"{name} {stage}"]).processor for stage in ("decode", "forward", "write")]
    return " ".join(f"{100 * one / sum(alone):.0f}" for one in alone)


def large(bench: Bench) -> None:
    """Print the same for full-size radiographs and a light network, and decoding alone against the loop's loader."""
    count = 40 if bench.quick else 80
    folder = stages.large_pictures(bench.folder / "large", count)
    print(f"\n## Full-size radiographs, {count} pictures of about 1,700 x 1,400, {LIGHT}\n")
    print(HEADING)
    one_network(bench, folder, LIGHT, bench.precisions())
    alone = stages.Alone(folder, [LIGHT], bench.half, bench.device)

    def loader() -> None:
        for _ in stages.everyones_loader(folder, LIGHT):
            pass

    taken = bench.in_turn({"loader": loader, "decode": alone.decode}, count)
    print(f"decoding alone against the loop's loader: {ratio(taken['loader'], taken['decode'])} (wall | cores; bar 2)")
    bench.rates["decode full-size"] = 1 / median(taken["decode"]).processor


def several(bench: Bench) -> None:
    """Print (c): one decode and three networks against the limit of one decode and three forward passes."""
    folder = stages.some_pictures(bench.folder / "several", bench.pictures)
    print(f"\n## One decode, {len(SEVERAL)} backbones: {' '.join(SEVERAL)}, {bench.half}\n")
    with stages.artifacts(bench.folder / "artifacts"):
        alone = stages.Alone(folder, SEVERAL, bench.half, bench.device)
    works: dict[str, Callable[[], object]] = {
        "all": lambda: stages.firn(folder, SEVERAL, bench.half, bench.device),
        "one by one": lambda: [stages.firn(folder, [name], bench.half, bench.device) for name in SEVERAL],
    }
    works |= {f"all {stage}": getattr(alone, stage) for stage in ("decode", "forward", "write")}
    taken = bench.in_turn(works, bench.pictures)
    best = stage_limit(taken, "all", bench.device)
    print(f"{1 / median(taken['all']).wall:,.0f} pictures/s; ratios by wall | cores")
    print(f"of the stage limit: {ratio(best, taken['all'])} (bar {LIMIT_BARS[bench.device]})")
    print(f"against one backbone after the other: {ratio(taken['one by one'], taken['all'])}")


def memory(bench: Bench) -> None:
    """Print (d): the most memory that was resident, for few and for many pictures."""
    print(f"\n## Peak resident memory, drawn pictures of 64 x 64, squeezenet1_1, {bench.half}\n")
    print("| pictures | peak, MB | seconds |\n|---|---|---|")
    for count in (200, 1_000) if bench.quick else (1_000, 20_000):
        code = f"from benchmarks.extraction import drawn_run; drawn_run({str(bench.folder)!r}, {count})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| {count:,} | {found['peak'] / 1e6:,.0f} | {found['seconds']:,.1f} |", flush=True)


def drawn_run(folder: str, count: int) -> None:
    """Draw so many pictures, extract them, and print the peak memory of this process as JSON."""
    from PIL import Image

    from features.devices import device, precision

    place, where = Path(folder) / f"drawn{count}", device("auto")
    rng = np.random.default_rng(0)
    for i in range(count):
        target = place / "ab"[i % 2] / f"{i:06d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(target, compress_level=0)
    with stages.artifacts(Path(folder) / "artifacts"):
        taken = spent(lambda: stages.firn(place, ["squeezenet1_1"], precision("auto", where), where), 1)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"peak": peak, "seconds": taken.wall}))


def fidelity(bench: Bench) -> None:
    """Print (e): half precision against float32, by picture at the last block and by the score of a head."""
    from benchmarks.fidelity import compare

    print(f"\n## Fidelity: {bench.half} against float32, resnet18, last block, logistic head on the test pictures\n")
    print("| set | pictures | least cosine | bar | AUC float32 | AUC half | difference | bar |\n" + "|---" * 8 + "|")
    for name in ("pneumonia", "colon", "cervical"):
        with stages.artifacts(bench.folder / "artifacts"):
            found = compare(name, "resnet18", bench.half, bench.device, most=200 if bench.quick else 0)
        areas = f"{found.full:.4f} | {found.half:.4f} | {found.half - found.full:+.4f} | 0.002"
        print(f"| {name} | {found.pictures:,} | {found.cosine:.5f} | 0.999 | {areas} |", flush=True)


def gpu(bench: Bench) -> None:
    """Print the forward pass alone on a GPU, in half precision, and what the bars are."""
    print("\n## Forward alone at 224 on a GPU, float16, channels-last\n")
    if bench.device == "cpu":
        print("no GPU at hand: not measured yet")
        return
    import torch

    from benchmarks.fidelity import forward_rate

    print(f"{torch.cuda.get_device_name()}\n\n| backbone | pictures/s | bar |\n|---|---|---|")
    for name, bar in GPU_BARS.items():
        rate = forward_rate(name, bench.device)
        bench.rates[f"gpu {name}"] = rate
        print(f"| {name} | {rate:,.0f} | {bar:,} |", flush=True)


def projection(bench: Bench) -> None:
    """Print what ten million pictures of 224 x 224 would take on eight GPUs, from the rates measured above.

    Time is that of the slowest stage: forward on 8 GPUs, decode and write on the cores beside them (16 per GPU here).
    """
    from features.backbones import load_recipe

    print(f"\n## {TEN_MILLION:,} pictures on {GPUS} GPUs, 16 cores beside each: projected from measured rates\n")
    for stage in ("decode", "write"):
        if stage in bench.rates:
            hours = TEN_MILLION / bench.rates[stage] / (16 * GPUS) / 3600
            print(f"{stage}: {bench.rates[stage]:,.0f} pictures/s and core, so {hours:.2f} h on {16 * GPUS} cores")
    for name in GPU_BARS:
        recipe = load_recipe(name)
        size = TEN_MILLION * 4 * sum(c for c, _, _ in recipe.blocks.values())
        rate = bench.rates.get(f"gpu {name}")
        hours = f"{TEN_MILLION / rate / GPUS / 3600:.2f} h" if rate else "needs a GPU rate: not measured yet"
        print(f"{name}: pooled features {size / 1e9:,.0f} GB; forward {hours}")


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "loop": against_loop,
    "large": large,
    "several": several,
    "memory": memory,
    "fidelity": fidelity,
    "gpu": gpu,
    "projection": projection,
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures, one repeat: does it run, not how fast")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.quick)
        os.environ["FIRN_ARTIFACTS"] = str(Path(folder) / "artifacts")
        stages.give_weights(Path(folder) / "weights", [*{*BACKBONES, *GPU_BARS}])
        print(f"device {bench.device}, half precision is {bench.half}, {os.cpu_count()} cores")
        print(f"load at the start {os.getloadavg()[0]:.1f}")
        if bench.device == "cpu":
            print("no GPU at hand: everything runs on the CPU, rows of a GPU are not measured")
        for name in options.only:
            SECTIONS[name](bench)
        print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
