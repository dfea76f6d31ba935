"""How fast is extraction, against the loop that everyone writes and against the machine itself?

    python -m benchmarks.extraction [--quick] [--only processes loop limit large several memory fidelity gpu projection]

Needs real images below FIRN_DATA (pneumonia, radiographs_fullsize, for fidelity colon and cervical) and weights in
FIRN_WEIGHTS. Every ratio is the median of several, each of two things done in turn in this one process, but for
"processes", whose programs are started anew. The loop has 2, 8 or as many workers as cores, whichever is quickest, and
runs in Firn's precision, half precision with channels last. It keeps
only the average of the last block; Firn keeps average and maximum of every block, digests each image, and syncs. The
stage limit is what the stages take when each is done alone on the same images: their sum on a CPU, where they share
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
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import numpy as np

from benchmarks import stages
from benchmarks.loop import loop
from benchmarks.stages import Spent, median, spent

BACKBONES = ["alexnet", "resnet18", "resnet50", "mobilenet_v3_small", "squeezenet1_1"]
SEVERAL = ["alexnet", "resnet18", "squeezenet1_1"]
LIGHT = "alexnet"
BARS = {"float32": 1.4, "bfloat16": 1.3, "float16": 6.0}  # of a CPU, of a CPU, of a GPU
WHOLE, START_UP = "resnet18", 4.0  # of whole processes: the backbone, and the bar of seconds before the first image
GPU_BARS = {"resnet18": 65_000, "resnet50": 25_000, "resnet101": 14_000}
LIMIT_BARS = {"cpu": 0.95, "cuda": 0.8}
STAGES = ("decode", "forward", "write")
OF_LOOP = "| backbone | precision | images/s | the loop's | ratio, wall | cores | bar |\n|---|---|---|---|---|---|---|"
OF_LIMIT = """| backbone | images/s | decode alone | forward alone | write alone | of the limit, wall | cores | bar \
| shares of decode, forward, write |\n|---|---|---|---|---|---|---|---|---|"""
GPUS, TEN_MILLION = 8, 10_000_000
ON_GPU = 20_000  # images, or starting would be most of the time


class Bench:
    """What the sections share: the folder, the size of the run, the device."""

    def __init__(self, folder: Path, quick: bool, backbones: list[str], images: int = 0) -> None:
        from features.devices import choose_device, choose_precision

        self.folder, self.quick, self.backbones = folder, quick, backbones
        self.device = choose_device("auto")
        self.half = choose_precision("auto", self.device)
        self.repeats, self.images = (1, 64) if quick else (3, 256)
        usual = (self.images, 4 * self.images, 1_000) if quick or self.device == "cpu" else (ON_GPU,) * 3
        self.some, self.many, self.whole = (images or n for n in usual)  # for the loop, the limit, whole processes
        self.asked = images  # for fidelity: of each set, 0 is all
        self.rates: dict[str, float] = {}  # of the projection

    def in_turn(self, works: dict[str, Callable[[], object]], images: int) -> dict[str, list[Spent]]:
        """Do every work once, again and again."""
        taken: dict[str, list[Spent]] = {name: [] for name in works}
        for _ in range(self.repeats):
            for name, work in works.items():
                with stages.artifacts(self.folder / "artifacts"):
                    taken[name].append(spent(work, images))
        return taken

    def precisions(self) -> list[str]:
        """Return float32 and, where the hardware has it, half precision."""
        return list(dict.fromkeys(["float32", self.half]))


def ratio(of: list[Spent], to: list[Spent]) -> str:
    """Return how many times as long one took as the other: median of the repeats, by wall and by processor."""
    return " | ".join(f"{np.median([a[i] / b[i] for a, b in zip(of, to, strict=True)]):.2f}" for i in (0, 1))


def against_loop(bench: Bench) -> None:
    """Print (a): end to end against the loop that everyone writes."""
    folder = stages.some_images(bench.folder / "pneumonia", bench.some)
    print(f"\n## Against the loop that everyone writes, {bench.some} pneumonia images of 224 x 224\n")
    workers = loop_workers(bench, folder, bench.backbones[0])
    print(f"\n{OF_LOOP}")
    ratios: dict[str, list[float]] = {}
    for name in bench.backbones:
        for precision, wall in to_loop(bench, folder, name, workers).items():
            ratios.setdefault(precision, []).append(wall)
    for precision, values in ratios.items():
        print(f"median of the {len(values)}, {precision}: {np.median(values):.2f} (bar {BARS[precision]})")


def loop_workers(bench: Bench, folder: Path, name: str) -> int:
    """Return with how many workers the loop is quickest, each number tried once, in half precision."""
    out, taken = bench.folder / "loop.h5", {}
    for workers in sorted({2, 8, os.cpu_count() or 1}):
        how = stages.loop_of(folder, name, out, bench.device, workers=workers, precision=bench.half)
        taken[workers] = spent(lambda how=how: loop(**how), 1).wall
    print("seconds of the loop by workers:", ", ".join(f"{n}: {seconds:.1f}" for n, seconds in taken.items()))
    return min(taken, key=taken.__getitem__)


def to_loop(bench: Bench, folder: Path, name: str, workers: int) -> dict[str, float]:
    """Print a row per precision; return the ratios by wall to the loop in that precision."""
    out, wall = bench.folder / "loop.h5", {}
    works: dict[str, Callable[[], object]] = {}
    for p in bench.precisions():
        how = stages.loop_of(folder, name, out, bench.device, workers=workers, precision=p)
        works[f"loop {p}"] = lambda how=how: loop(**how)
        works[p] = lambda p=p: stages.firn(folder, [name], p, bench.device)
    taken = bench.in_turn(works, len(list(folder.glob("*/*"))))
    for precision in bench.precisions():
        ours, theirs = taken[precision], taken[f"loop {precision}"]
        wall[precision] = float(np.median([a.wall / b.wall for a, b in zip(theirs, ours, strict=True)]))
        rates = f"{1 / median(ours).wall:,.0f} | {1 / median(theirs).wall:,.0f}"
        print(f"| {name} | {precision} | {rates} | {ratio(theirs, ours)} | {BARS[precision]} |", flush=True)
    return wall


def processes(bench: Bench) -> None:
    """Print whole processes, the interpreter's start included: `extract` against the loop as a script."""
    few, count = 16, 64 if bench.quick else bench.whole
    folders = {n: stages.some_images(bench.folder / f"whole{n}", n) for n in (few, count)}
    workers = loop_workers(bench, folders[count], WHOLE)
    print(f"\n## Whole processes, {count} images of 224 x 224, {WHOLE}\n")
    print("| precision | images | Firn, s | the loop, s | ratio, wall | cores | bar |\n" + "|---" * 7 + "|")
    for precision in bench.precisions():
        for n, folder in folders.items():
            taken = bench.in_turn(started(bench, folder, precision, workers), 1)
            seconds = f"{median(taken['firn']).wall:.1f} | {median(taken['loop']).wall:.1f}"
            bar = BARS[precision] if n == count else f"{START_UP:.0f} s"
            print(f"| {precision} | {n} | {seconds} | {ratio(taken['loop'], taken['firn'])} | {bar} |", flush=True)


def started(bench: Bench, folder: Path, precision: str, workers: int) -> dict[str, Callable[[], object]]:
    """Return what starts Firn's command, and the loop, as programs of their own."""
    options = ["--dataset", str(folder), "--backbone", WHOLE, "--precision", precision, "--device", bench.device]
    how = stages.loop_of(folder, WHOLE, bench.folder / "loop.h5", bench.device, workers=workers, precision=precision)
    commands = {"firn": ["-m", "pipeline", "extract", *options], "loop": ["-m", "benchmarks.loop", json.dumps(how)]}

    def start(arguments: list[str]) -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    return {name: partial(start, arguments) for name, arguments in commands.items()}


def against_limit(bench: Bench) -> None:
    """Print (b): end to end against what the stages take alone; with many images, for loading weights is no stage."""
    count = bench.many
    folder = stages.some_images(bench.folder / "many", count)
    print(f"\n## Against the stage limit, {count} pneumonia images of 224 x 224, {bench.half}\n\n{OF_LIMIT}")
    for name in bench.backbones:
        bench.rates |= to_limit(bench, folder, [name], bench.half)


def to_limit(bench: Bench, folder: Path, names: list[str], precision: str) -> dict[str, float]:
    """Print a row: end to end, the stages alone, the share of their limit that is reached, and their shares of it.

    Returns the images per second and core of each stage.
    """
    with stages.artifacts(bench.folder / "artifacts"):
        alone = stages.Alone(folder, names, precision, bench.device)
    works: dict[str, Callable[[], object]] = {
        "all": lambda: stages.firn(folder, names, precision, bench.device),
        **{stage: getattr(alone, stage) for stage in STAGES},
    }
    taken = bench.in_turn(works, len(alone.dataset))
    rates = " | ".join(f"{1 / median(taken[work]).wall:,.0f}" for work in works)
    reached = f"{ratio(stage_limit(taken, bench.device), taken['all'])} | {LIMIT_BARS[bench.device]}"
    print(f"| {' '.join(names)} | {rates} | {reached} | {shares(taken)} |", flush=True)
    return {stage: 1 / median(taken[stage]).processor for stage in STAGES}


def stage_limit(taken: dict[str, list[Spent]], device: str) -> list[Spent]:
    """Return what the stages done alone take together, repeat by repeat."""
    parts = zip(*(taken[stage] for stage in STAGES), strict=True)
    return [Spent(*(stages.limit(list(column), device) for column in zip(*p, strict=True))) for p in parts]


def shares(taken: dict[str, list[Spent]]) -> str:
    """Return the stages' shares of what they take alone, in per cent of processor time."""
    alone = [median(taken[stage]).processor for stage in STAGES]
    return " ".join(f"{100 * one / sum(alone):.0f}" for one in alone)


def large(bench: Bench) -> None:
    """Print (a) and (b) for full-size radiographs and a light network, and decoding alone against the loop's loader."""
    count = 40 if bench.quick else 120
    folder = stages.large_images(bench.folder / "large", count)
    print(f"\n## Full-size radiographs, {count} images of about 1,700 x 1,400\n")
    workers = loop_workers(bench, folder, LIGHT)
    print(f"\n{OF_LOOP}")
    to_loop(bench, folder, LIGHT, workers)
    print(f"\n{OF_LIMIT}")
    bench.rates["decode full-size"] = to_limit(bench, folder, [LIGHT], bench.half)["decode"]
    alone = stages.Alone(folder, [LIGHT], bench.half, bench.device)

    def loader() -> None:
        for _ in stages.everyones_loader(folder, LIGHT):
            pass

    taken = bench.in_turn({"loader": loader, "decode": alone.decode}, count)
    print(
        f"\ndecoding alone against the loop's loader, wall | cores: {ratio(taken['loader'], taken['decode'])} (bar 2)"
    )


def several(bench: Bench) -> None:
    """Print (c): one decode and three networks, against the limit and against one network after the other."""
    folder = stages.some_images(bench.folder / "several", 2 * bench.images)
    print(f"\n## One decode, {len(SEVERAL)} backbones, {2 * bench.images} images, {bench.half}\n\n{OF_LIMIT}")
    to_limit(bench, folder, SEVERAL, bench.half)
    works: dict[str, Callable[[], object]] = {
        "all": lambda: stages.firn(folder, SEVERAL, bench.half, bench.device),
        "in turn": lambda: [stages.firn(folder, [name], bench.half, bench.device) for name in SEVERAL],
    }
    taken = bench.in_turn(works, 2 * bench.images)
    print(f"\nagainst one backbone after the other, wall | cores: {ratio(taken['in turn'], taken['all'])}")


def memory(bench: Bench) -> None:
    """Print (d): the most memory that was resident, for few and for many images."""
    print(f"\n## Peak resident memory, drawn images of 64 x 64, {LIGHT}, {bench.half}\n")
    print("| images | peak, MB | seconds |\n|---|---|---|")
    for count in (200, 1_000) if bench.quick else (1_000, 20_000):
        code = f"from benchmarks.extraction import drawn_run; drawn_run({str(bench.folder)!r}, {count})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| {count:,} | {found['peak'] / 1e6:,.0f} | {found['seconds']:,.1f} |", flush=True)


def drawn_run(folder: str, count: int) -> None:
    """Draw so many images, extract them, and print the peak memory of this process as JSON."""
    from PIL import Image

    from features.devices import choose_device, choose_precision

    place, where = Path(folder) / f"drawn{count}", choose_device("auto")
    rng = np.random.default_rng(0)
    for i in range(count):
        target = place / "ab"[i % 2] / f"{i:06d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(target, compress_level=0)
    with stages.artifacts(Path(folder) / "artifacts"):
        taken = spent(lambda: stages.firn(place, [LIGHT], choose_precision("auto", where), where), 1)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"peak": peak, "seconds": taken.wall}))


def fidelity(bench: Bench) -> None:
    """Print (e): lower precisions against float32, by image at the last block and by the score of a head."""
    from benchmarks.fidelity import compare

    print("\n## Fidelity against float32, resnet18, last block, logistic head on the test images\n")
    print(
        "| set | precision | images | least cosine | bar | AUC float32 | AUC | difference | bar |\n" + "|---" * 9 + "|"
    )
    for name in ("pneumonia", "colon", "cervical"):
        with stages.artifacts(bench.folder / "artifacts"):
            for precision in ("bfloat16", "float16", *["tf32"] * (bench.device != "cpu")):
                most = 200 if bench.quick else bench.asked
                found = compare(name, "resnet18", precision, bench.device, most=most)
                areas = f"{found.full:.4f} | {found.half:.4f} | {found.half - found.full:+.4f} | 0.002"
                row = f"{name} | {precision} | {found.images:,} | {found.cosine:.5f} | 0.999 | {areas}"
                print(f"| {row} |", flush=True)


def gpu(bench: Bench) -> None:
    """Print the forward pass alone on a GPU, in half precision, and what the bars are."""
    print("\n## Forward alone at 224 on a GPU, float16, channels-last; with torch.compile too\n")
    if bench.device == "cpu":
        print("no GPU at hand: not measured yet")
        return
    import torch

    from benchmarks.fidelity import forward_rate
    from features.extraction.cuda_graph import compiling_pays

    print(
        f"{torch.cuda.get_device_name()}\n\n| backbone | way | images/s | first call, s | bar |\n|---|---|---|---|---|"
    )
    ways = {"recorded": False} | ({"compiled": True} if compiling_pays(bench.device, TEN_MILLION) else {})
    for name, bar in GPU_BARS.items():
        for way, compiled in ways.items():
            found = forward_rate(name, bench.device, compiled=compiled)
            bench.rates[f"gpu {name}"] = max(found.rate, bench.rates.get(f"gpu {name}", 0.0))
            print(f"| {name} | {way} | {found.rate:,.0f} | {found.first:.1f} | {bar:,} |", flush=True)


def projection(bench: Bench) -> None:
    """Print what ten million images of 224 x 224 would take on eight GPUs, from the rates measured above.

    Time is that of the slowest stage: forward on 8 GPUs, decode and write on the cores beside them (16 per GPU here).
    """
    from features.backbones import load_spec

    if "decode" not in bench.rates:
        bench.backbones = [LIGHT]
        against_limit(bench)
    print(f"\n## {TEN_MILLION:,} images on {GPUS} GPUs, 16 cores beside each: projected from measured rates\n")
    minutes = {}
    for stage in [stage for stage in ("decode", "decode full-size", "write") if stage in bench.rates]:
        minutes[stage] = TEN_MILLION / bench.rates[stage] / (16 * GPUS) / 60
        print(f"{stage}: {bench.rates[stage]:,.0f} images/s and core, {minutes[stage]:,.1f} min on {16 * GPUS} cores")
    for name in GPU_BARS:
        size = TEN_MILLION * 4 * sum(c for c, _, _ in load_spec(name).blocks.values())  # two poolings of two bytes
        rate, forward = bench.rates.get(f"gpu {name}"), "needs a GPU rate: not measured yet"
        if rate:
            minutes["forward"] = TEN_MILLION / rate / GPUS / 60
            limit = max(("decode", "write", "forward"), key=minutes.__getitem__)
            forward = f"{minutes['forward']:,.1f} min; the limit is {limit}, {minutes[limit] / 60:.2f} h"
        print(f"{name}: pooled features {size / 1e9:,.0f} GB; forward {forward}")


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "processes": processes,
    "loop": against_loop,
    "limit": against_limit,
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
    parser.add_argument("--quick", action="store_true", help="few images, one repeat: does it run, not how fast")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES)
    parser.add_argument(
        "--images",
        type=int,
        default=0,
        help="of processes, loop, limit, fidelity; else 1,000, 256, 1,024, all; on a GPU 20,000",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.quick, options.backbones, options.images)
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
