"""Export: heads, poolings and calibrations in torch and ONNX say what numpy says, and a card tells the limits."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import stored
from torch import nn
from verbs_for_tests import export, selected

from features.errors import FirnError, UnknownName
from features.views import POOLS
from models.heads import HEADS, make_head
from models.metrics import CALIBRATIONS
from models.predictor.build import BundleOptions, write_bundle
from models.predictor.export import ALIKE, APART, FORMATS, PARITY, POOLING, Agreement, Portable, Trial, check_export
from models.predictor.loading import load, read_bundle
from models.predictor.torch_heads import MODULES, calibrator, head_module
from models.predictor.trees import read_trees
from models.runs.options import ModelSelector
from models.runs.record import load_runs
from pipeline.render.model_card import Exported, render_card

ROOT = Path(__file__).parents[1]
EXPORTED = [name for name, row in HEADS.items() if row.input != "runs"]


def sought(head: str) -> ModelSelector:
    """Return what finds the run of a head with the plainest view."""
    runs = [run for run in load_runs(stored("spots")) if run.record.head == head and run.record.pool != "both"]
    return selected(runs[0].folder)


def learn(name: str, classes: int, folder: Path) -> tuple[Any, np.ndarray[Any, Any]]:
    """Return a head fitted on random features or maps, and others to predict."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % classes
    shape = (5, 9, 9) if HEADS[name].input == "maps" else (6,)
    X = (rng.normal(size=(120, *shape)) + 1).astype(np.float16).astype(np.float32)
    X[:90] += 0.8 * y.reshape(-1, *[1] * len(shape))
    head = make_head(name).fit(X[:90], y)
    if name == "lightgbm":
        (folder / "trees.txt").write_text(head.state()[0]["text"])
        return read_trees(folder / "trees.txt", classes, 6), X[90:]
    return head, X[90:]


def test_every_head_and_pooling_has_a_module() -> None:
    """The tables go together: one more head or pooling is one more row here too."""
    assert set(MODULES) == {row.form for row in HEADS.values()}
    assert set(POOLING) == set(POOLS)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", EXPORTED)
def test_heads_as_torch(name: str, classes: int, tmp_path: Path) -> None:
    """The module's softmax is the head's probability."""
    head, X = learn(name, classes, tmp_path)
    ours = torch.softmax(head_module(name, head)(torch.from_numpy(X)).double(), 1).numpy()
    np.testing.assert_allclose(ours, head.predict_proba(X), rtol=0, atol=2e-6)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", [*CALIBRATIONS, "none"])
def test_calibrations_as_torch(name: str, classes: int) -> None:
    """Also for probabilities of 0 and 1, and beyond the outermost knots."""
    rng = np.random.default_rng(0)
    proba = rng.dirichlet(np.ones(classes) / 2, 200)
    y = np.array([rng.choice(classes, p=p) for p in proba])
    calibration = None if name == "none" else CALIBRATIONS[name](y[:100], proba[:100])
    rows = np.concatenate([proba, np.eye(classes)])
    expected = rows if calibration is None else calibration(rows)
    np.testing.assert_allclose(calibrator(calibration)(torch.from_numpy(rows)).numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", [6, 7, 13])
@pytest.mark.parametrize("name", POOLS)
def test_poolings_as_torch(name: str, side: int) -> None:
    """Pooled maps, in the order that heads have learned."""
    maps = (np.random.default_rng(0).random((2, 3, side, side)) - 0.2).astype(np.float16)
    way = POOLS[name]
    pooled = {"avg": maps.mean((2, 3), dtype=np.float32), "max": maps.max((2, 3)).astype(np.float32)}
    pooled["cls"] = maps[:, :, 0, 0].astype(np.float32)
    expected = way.of_maps(maps) if way.of_maps else np.concatenate([pooled[kind] for kind in way.cached], axis=1)
    seen = {"end": torch.from_numpy(maps.astype(np.float32)), "end/cls": torch.from_numpy(pooled["cls"])}
    ours = torch.cat([pool(seen, "end", lambda values: values) for pool in POOLING[name]], 1)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-5)


class AllHeads(nn.Module):
    """Every head on the same maps."""

    def __init__(self, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        X = maps[:, 0, 0, :6]
        return tuple(
            torch.softmax(head(maps if HEADS[name].input == "maps" else X).double(), 1).float()
            for name, head in self.heads.items()
        )


def test_heads_in_onnxruntime(tmp_path: Path) -> None:
    """All heads in one graph, for one image and for several."""
    import onnxruntime

    found = {name: learn(name, 3, tmp_path) for name in EXPORTED}
    module = AllHeads({name: head_module(name, head) for name, (head, _) in found.items()}).eval()
    maps = found["map"][1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = {"maps": {0: torch.export.Dim("batch", min=1)}}
        program = torch.export.export(module, (torch.from_numpy(maps[:2]),), dynamic_shapes=dynamic)
        torch.onnx.export(program, dynamo=True, input_names=["maps"], verbose=False).save(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    for some in (maps, maps[:1]):
        for (name, (head, _)), proba in zip(found.items(), session.run(None, {"maps": some}), strict=True):
            seen = some if HEADS[name].input == "maps" else some[:, 0, 0, :6]
            np.testing.assert_allclose(proba, head.predict_proba(seen), rtol=0, atol=1e-4, err_msg=name)


def test_onnx_from_the_command_line(workshop: Path, tmp_path: Path) -> None:
    """A process that knows numpy and onnxruntime only gets the bundle's probabilities of real squares."""
    out = tmp_path / "m.onnx"
    command = [sys.executable, "-W", "error", "-m", "pipeline", "export", "--model", sought("finetuned").model]
    done = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"on 8 images of {stored('spots')} it agrees with torch within" in done.stdout
    assert "; 0 of 8 decisions change" in done.stdout
    assert "warning" not in done.stderr
    assert done.stdout.splitlines()[-1] == str(out)
    images = sorted((workshop / "spots" / "test").rglob("*.png"))
    run = sought("finetuned").load()
    predictor = load(write_bundle(run, tmp_path / "b", BundleOptions()))
    from features.images import pixels

    squares = np.stack([pixels(p.read_bytes(), predictor.geometry, name="").repeat(3, axis=0) for p in images])
    np.save(tmp_path / "squares.npy", squares.astype(np.float32))
    code = (
        "import sys, json, numpy as np, onnxruntime\n"
        "facts = json.load(open(sys.argv[1] + '/m.json'))\n"
        "session = onnxruntime.InferenceSession(sys.argv[1] + '/m.onnx')\n"
        "out = session.run(['proba'], {facts['input']['name']: np.load(sys.argv[1] + '/squares.npy')})[0]\n"
        "np.save(sys.argv[1] + '/proba.npy', out)\n"
        "assert not {'features', 'models', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, check=True)
    found = predictor(images)
    np.testing.assert_allclose(np.load(tmp_path / "proba.npy"), found.proba, rtol=0, atol=1e-4)
    facts = json.loads((tmp_path / "m.json").read_text())
    assert facts["classes"] == ["normal", "spot"]
    assert facts["points"] == predictor.points
    card = (tmp_path / "m.md").read_text()
    for words in (
        "Not a medical device",
        "Intended use",
        "Limits",
        "| ROC AUC | ",
        "| train | 10 | 10 | 20 |",
        "m.onnx",
    ):
        assert words in card


@pytest.mark.parametrize(("format_", "head"), [("program", "stack"), ("program", "lightgbm")])
def test_torch_formats(format_: str, head: str, workshop: Path, tmp_path: Path) -> None:
    """A stack and trees go along; the file is checked where it will be opened."""
    out = tmp_path / f"m{FORMATS[format_].suffix}"
    line, path = export(sought(head), format_, out=str(out), images=str(workshop / "spots" / "test"))
    assert "on 8 images of" in line
    assert path == str(out)
    assert out.stat().st_size > 1_000_000
    assert not list(tmp_path.glob(".*"))


def test_what_is_refused(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown format, a name that says another one, and a graph that differs by more than is allowed."""
    with pytest.raises(UnknownName, match="format"):
        export(sought("logistic"), "onyx")
    with pytest.raises(FirnError, match=r"end in \.pt2"):
        export(sought("logistic"), "program", out=str(tmp_path / "m.onnx"))
    monkeypatch.setattr("models.predictor.export.PARITY", -1.0)
    with pytest.raises(FirnError, match=r"differs by .* it was not kept"):
        export(sought("logistic"), "program", out=str(tmp_path / "m.pt2"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("of_torch", "of_bundle", "changed", "precision", "drawn", "verdict"),
    [
        (PARITY, PARITY, 0, "float32", False, "kept"),
        (PARITY, 2 * PARITY, 0, "float32", False, "refused"),
        (2 * PARITY, 0.0, 0, "bfloat16", True, "refused"),
        (np.nan, 0.0, 0, "bfloat16", True, "refused"),
        (PARITY, ALIKE, 0, "bfloat16", False, "kept"),
        (PARITY, ALIKE, 1, "bfloat16", False, "warned"),
        (PARITY, APART, 0, "bfloat16", False, "warned"),
        (PARITY, 0.2, 0, "bfloat16", False, "refused"),
        (PARITY, 0.2, 3, "bfloat16", True, "warned"),
        (PARITY, np.nan, 0, "float16", False, "refused"),
    ],
)
def test_the_rule(of_torch: float, of_bundle: float, changed: int, precision: str, drawn: bool, verdict: str) -> None:
    """What is kept, warned of and refused; of drawn images a coarse bundle's own rounding is no reason to refuse."""
    found = Agreement(Trial("8 images", [b""] * 8, drawn), of_torch, of_bundle, changed, precision)
    if verdict == "refused":
        with pytest.raises(FirnError, match=r"differs by .* not kept"):
            found.check()
        return
    found.check()
    assert bool(found.doubt) == (verdict == "warned")
    assert f"{changed} of 8 decisions change" in found.words


def test_a_refusal_says_the_difference_that_is_too_large() -> None:
    """Of a bundle in bfloat16 the distance from it is no reason, so the distance from torch is what is told."""
    with pytest.raises(FirnError, match=r"differs by 0\.0002 from torch on 8 images, more than 0\.0001"):
        Agreement(Trial("8 images", []), 2e-4, 0.05, 0, "bfloat16").check()
    with pytest.raises(FirnError, match=r"differs by 0\.0003 from the bundle on 8 images, more than 0\.0001"):
        Agreement(Trial("8 images", []), 5e-5, 3e-4, 0, "float32").check()


def test_decisions_that_change_are_counted(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image at the threshold itself is decided otherwise by a graph that is a little off, and no other one is."""
    bundle = write_bundle(sought("logistic").load(), tmp_path / "b", BundleOptions())
    images = [path.read_bytes() for path in sorted((workshop / "spots" / "test").rglob("*.png"))]
    predictor, module = load(bundle, device="cpu"), Portable(read_bundle(bundle))

    def run(pixels: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        proba, calibrated = (out.numpy() for out in module(torch.from_numpy(pixels)))
        return proba + np.array([PARITY / 2, -PARITY / 2]), calibrated

    threshold = float(predictor(images).proba[0, 1])
    monkeypatch.setattr(type(predictor), "threshold", lambda self, point="": threshold)
    found = check_export(run, module, predictor, Trial("8 images", [*images]))
    assert found.changed == 1
    assert f"; 1 of {len(images)} decisions change" in found.words


def test_a_card_that_is_none(workshop: Path, tmp_path: Path) -> None:
    """A stranger's bundle may say anything of itself; drawn images check it, for it names no path to read."""
    folder = write_bundle(sought("logistic").load(), tmp_path / "b", BundleOptions())
    values = json.loads((folder / "bundle.json").read_text())
    for card in ({"data": 5}, {"results": {"test": {"roc_auc": 1}}}, {"data": {"asked": "/etc", "counts": [1]}}):
        (folder / "bundle.json").write_text(json.dumps(values | {"card": card}))
        with pytest.raises(FirnError, match="card"):
            export(selected(folder), "program", out=str(tmp_path / "m.pt2"))
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_names_in_a_card_are_plain_text(workshop: Path, tmp_path: Path) -> None:
    """A class or a data set whose name is HTML or Markdown does nothing on the page that shows the card."""
    from dataclasses import replace

    from models.predictor.manifest import load_contents

    contents = load_contents(write_bundle(sought("logistic").load(), tmp_path / "b", BundleOptions()))
    evil = "<script>alert(1)</script>|[x](javascript:y)\n# z"
    data = contents.card["data"] | {"dataset": evil, "classes": [evil, "b"], "note": evil, "counts": {evil: {evil: 1}}}
    changed = replace(contents, name=evil, classes=(evil, "b"), card={**contents.card, "data": data})
    card = render_card(changed, Exported("m.onnx", "ONNX", 224, ("pixels", ("proba", "calibrated")), "checked"))
    assert "<script" not in card.replace("\\<script", "")
    assert "](javascript" not in card.replace("\\]\\(javascript", "")
    assert "\n# z" not in card
    assert card.count("\\<script\\>") >= 4
