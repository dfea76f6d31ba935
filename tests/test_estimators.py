"""From Python: features as arrays and frames, a classifier of scikit-learn in the comparison, results as a frame."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import stored
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import LinearSVC
from verbs_for_tests import asked, compare, extract, first, selected, train_heads

from features.errors import BadBundle, CacheError, FirnError, UnknownName
from features.extraction.rates import last_rate, note_rate
from features.request import open_features
from features.views import POOLS, pooled_view
from models.runs.durations import Training, guess
from models.runs.estimators import add_run
from models.runs.frames import Features, load_features, load_results
from models.runs.record import load_record, load_run, load_runs
from models.runs.summary import commands
from pipeline.package import public

NET = "squeezenet1_1"


@pytest.fixture
def features(workshop: Path) -> Features:
    """Return the pooled features of drawn images."""
    return load_features(str(workshop / "spots"), NET, precision="float32")


@pytest.mark.parametrize("pool", [name for name in POOLS if name != "cls"])  # for transformers
@pytest.mark.parametrize("blocks", ["1", "2"])
def test_features_are_the_view(blocks: str, pool: str, workshop: Path) -> None:
    """The same numbers as a head sees, each with a name of its own; maps of both blocks are there."""
    found = load_features(str(workshop / "spots"), NET, blocks=int(blocks), pool=pool, precision="float32")
    options = asked(workshop / "spots", NET, precision="float32")
    (entry,) = open_features(options.data.load(), options)
    view = pooled_view(entry, entry.key.blocks[-int(blocks) :], pool)
    np.testing.assert_array_equal(found.X, view.X)
    np.testing.assert_array_equal(found.ids, view.ids)
    assert len(set(found.columns)) == found.X.shape[1]
    assert {column.rsplit("/", 2)[0] for column in found.columns} == {*entry.key.blocks[-int(blocks) :]}
    assert {column.rsplit("/", 2)[1] for column in found.columns} == set(POOLS[pool].cached or (pool,))


def test_frame(features: Features) -> None:
    """Ids, the class by its name, group and split, then the features; a part has the images of a split."""
    frame = features.part("test").frame()
    assert [*frame.columns] == ["ids", "label", "group", "split", *features.columns]
    assert frame["label"].tolist() == ["normal"] * 4 + ["spot"] * 4
    np.testing.assert_array_equal(frame[list(features.columns)], features.X[features.splits == "test"])
    with pytest.raises(UnknownName, match="split"):
        features.part("tset")


def test_an_estimator_is_validated_as_a_head_is(features: Features, workshop: Path) -> None:
    """Logistic regression of scikit-learn: out-of-fold and test predictions of the same images in the same folds."""
    folder = add_run(features, LogisticRegression(C=1e-3, max_iter=5000), name="plain logistic")
    run, ours = load_run(folder), load_run(folder.parent / "logistic")
    for name in ("ids", "groups", "y", "fold"):
        np.testing.assert_array_equal(getattr(run.predictions, name), getattr(ours.predictions, name))
    fold = run.predictions.fold == 0
    held = np.isin(features.ids, run.predictions.ids[fold])
    learned = (features.splits != "test") & ~held
    model = LogisticRegression(C=1e-3, max_iter=5000).fit(features.X[learned], features.y[learned])
    np.testing.assert_allclose(run.predictions.proba[fold], model.predict_proba(features.X[held]), atol=1e-12)
    assert (run.record.head, run.record.added, ours.record.added) == ("plain logistic", True, False)
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.csv", "run.json"]
    folder.joinpath("run.json").unlink()


def test_folds_and_repeats_as_asked(workshop: Path) -> None:
    """Three folds, twice over, in the folder of just such runs."""
    asked_for = load_features(str(workshop / "spots"), NET, precision="float32", folds=3, repeats=2)
    run = load_run(add_run(asked_for, GaussianNB(), name="naive bayes"))
    assert sorted(set(run.predictions.fold.tolist())) == [-1, 0, 1, 2, 3, 4, 5]
    assert (run.record.folds, run.record.repeats) == (3, 2)
    assert run.folder.is_relative_to(run.record.root)
    assert run.record.root.name.endswith("-3-folds-2-repeats")


def test_it_is_compared_and_not_bundled(features: Features, workshop: Path) -> None:
    """It is ranked; the page says where it comes from; no command claims to make it; what needs a model refuses it."""
    spots = str(workshop / "spots")
    folder = add_run(features, GaussianNB(), name="naive bayes")
    page = Path(compare(spots))
    results = load_results(spots)
    row = results[results["head"] == "naive bayes"].iloc[0]
    test = load_run(folder).predictions.part(test=True)
    told = next(r for r in json.loads((page.parent / "results.json").read_text())["runs"] if r["head"] == "naive bayes")
    assert row["test_roc_auc"] == told["test"]["roc_auc"]["value"]
    assert row["test_roc_auc_low"] <= row["test_roc_auc"] <= row["test_roc_auc_high"]
    assert results["verdict"][0] == "chosen"
    assert len(test.y) == 8
    assert "Added from Python, and made again there only: naive bayes on squeezenet1_1" in page.read_text()
    records = [run.record for run in load_runs(stored("spots"))]
    assert not any("bayes" in line for line in commands(records, 0))
    for verb, options in (("bundle", {"model": str(folder)}), ("reproduce", {"run": str(folder)})):
        with pytest.raises(BadBundle, match=r"added from Python.*HEADS="):
            first(verb, **options)
    with pytest.raises(BadBundle, match="added from Python"):
        selected(folder).load()
    folder.joinpath("run.json").unlink()


@pytest.mark.parametrize(
    ("estimator", "name", "words"),
    [
        (GaussianNB(), "logistic", "tell the run from Firn's own heads"),
        (GaussianNB(), "Logistic!", "tell the run from Firn's own heads"),
        (GaussianNB(), " ", "tell the run from Firn's own heads"),
        (LinearSVC(), "svm", "CalibratedClassifierCV"),
    ],
)
def test_what_is_refused(estimator: object, name: str, words: str, features: Features) -> None:
    """A name of Firn's own, a classifier without probabilities, a part of the images; nothing is written."""
    before = {run.folder for run in load_runs(stored("spots"))}
    with pytest.raises(FirnError, match=words):
        add_run(features, estimator, name=name)
    with pytest.raises(FirnError, match="expected all 28 images, got 20"):
        add_run(features.part("train"), GaussianNB(), name="part")
    assert {run.folder for run in load_runs(stored("spots"))} == before


def test_names_that_would_share_a_folder(features: Features) -> None:
    """The second does not replace the first; under its own name a run is replaced."""
    folder = add_run(features, GaussianNB(), name="bayes 1")
    with pytest.raises(FirnError, match="differ by more than signs from 'bayes 1'"):
        add_run(features, GaussianNB(), name="Bayes-1")
    assert add_run(features, GaussianNB(var_smoothing=1e-3), name="bayes 1") == folder
    folder.joinpath("run.json").unlink()


class Halves(GaussianNB):
    """Says one half of everything."""

    def predict_proba(self, X: object) -> object:
        """Return rows that sum to one half."""
        return super().predict_proba(X) / 2


class Beyond(GaussianNB):
    """Says more than is certain."""

    def predict_proba(self, X: object) -> object:
        """Return rows that sum to 1, with a number below 0."""
        return np.tile([1.5, -0.5], (len(super().predict_proba(X)), 1))


@pytest.mark.parametrize("estimator", [Halves(), Beyond()])
def test_probabilities_must_be_some(estimator: GaussianNB, features: Features) -> None:
    """Rows that do not sum to 1 are no probabilities, nor are numbers below 0."""
    with pytest.raises(FirnError, match="do not sum to 1, or below 0"):
        add_run(features, estimator, name="halves")


def test_errors_say_what_to_type(workshop: Path, spots: Path) -> None:
    """Features that were not extracted, an option that there is not, two views at once, no comparison."""
    with pytest.raises(CacheError, match=r"run: make extract DATASET="):
        load_features(str(spots), NET)
    with pytest.raises(UnknownName, match=r"option 'sead'.*did you mean seed"):
        load_features(str(spots), NET, sead=1)
    with pytest.raises(FirnError, match=r"join backbones as 'a\+b'"):
        load_features(str(spots), "a b")
    with pytest.raises(CacheError, match=r"no comparison at .*; run: make compare DATASET=\S+ PROTOCOL=cv"):
        load_results(str(workshop / "spots"), protocol="cv")
    (spots / "results.json").write_text('{"runs": [{}]}')
    with pytest.raises(CacheError, match=r"no results\.json of this Firn .*make compare"):
        load_results(spots / "results.json")


def test_what_python_suggests_runs_as_it_stands(workshop: Path) -> None:
    """A command in an error has all that was asked for, as one that was typed."""
    spots = str(workshop / "spots")
    with pytest.raises(CacheError) as caught:
        public.load_features(spots, NET, blocks="all", pool="gem", precision="float32")
    typed = str(caught.value).partition("run: ")[2].split()
    assert typed[:2] == ["make", "extract"]
    assert {f"DATASET={spots}", f"BACKBONE={NET}", "PRECISION=float32"} < {*typed}
    assert public.load_features(spots, NET, precision="float32").ids.shape == (28,)


def test_a_guess_by_earlier_runs(workshop: Path) -> None:
    """The median of a head's runs, per image; of a head that was never trained nothing is known."""
    records = [load_record(run.folder) for run in load_runs(stored("spots"))]
    each = [r.seconds["oof"] + r.seconds["fit"] for r in records if r is not None and r.head == "lightgbm"]
    found = guess([Training("lightgbm", NET, 28), Training("lightgbm", "other", 56), Training("knn", NET, 28)])
    assert found.seconds == pytest.approx(3 * np.median(each))
    assert (found.known, found.unknown) == (2, ("knn",))


def test_it_is_said_before_what_takes_long(
    workshop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extraction by its last rate on this machine, trainings by earlier ones; nothing of what is short or unknown."""
    monkeypatch.setenv("FIRN_ARTIFACTS", str(workshop / "estimates"))
    spots = str(workshop / "spots")
    extract(spots, NET, precision="float32")
    train_heads(spots, NET, heads="lda", precision="float32")
    assert "about" not in capsys.readouterr().err
    note_rate([NET], "cpu", "float32", 100, 1.0)
    assert last_rate([NET], "cpu", "float32") is None  # 100 images say nothing
    note_rate([NET], "cpu", "float32", 400, 1600.0)
    assert last_rate([NET], "cpu", "float32") == 0.25
    assert last_rate([NET], "cuda", "float32") is None
    shutil.rmtree(workshop / "estimates" / "cache" / stored("spots"))
    extract(spots, NET, precision="float32")
    assert "all 28 images: about 112 s, at 0.2/s as the last time here" in capsys.readouterr().err
    monkeypatch.setattr("pipeline.train_heads.LONG", 0.0)
    train_heads(spots, NET, heads="lda ridge", blocks="2", precision="float32")
    assert re.search(r"1 training: about 1 s, by earlier runs .*; of ridge nothing", capsys.readouterr().err)
