"""The classes of a labelled set as a model knows them: the same name, the same but for its spelling, or as told."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from features.datasets import Dataset
from features.datasets.dataset import same_class
from features.errors import BadDataset, FirnError, command, listed, unknown

LEFT_OUT = -1  # the label of images whose class the model does not know and the user does not want


def matched_labels(
    dataset: Dataset, classes: Sequence[str], *, labels: str = "classes", told: str = "", model: str = ""
) -> NDArray[np.int64]:
    """Return the label of each image, (n,), as a model of `classes` has it; LEFT_OUT where it is to be left out.

    A class of the set is the one of the same name, case, blanks and underscores aside, or the one that `told` says:
    "mine=its,other=its", with nothing behind the = where its images are left out. `labels` names a coarser view of the
    set's labels. Raises BadDataset, with the command to type, where a class has no partner; UnknownName.
    """
    names = _names(dataset, labels)
    pairs = _told(told, names, classes)
    spelled = {same_class(name): name for name in classes}
    partner = {name: pairs.get(name, name if name in classes else spelled.get(same_class(name))) for name in names}
    lacking = [name for name in dict.fromkeys(names) if partner[name] is None]
    if lacking:
        raise BadDataset(_what_to_type(dataset, partner, classes, lacking, pairs, model))
    place = {name: k for k, name in enumerate(classes)} | {"": LEFT_OUT}
    return np.array([place[str(partner[name])] for name in names], np.int64)[dataset.labels]


def _names(dataset: Dataset, labels: str) -> list[str]:
    """Return the name of each class of the set under a view of its labels."""
    if labels == "classes":
        return list(dataset.classes)
    if labels not in dataset.label_views:
        raise unknown("labels", labels, [*dataset.label_views, "classes"])
    return [dataset.label_views[labels][name] for name in dataset.classes]


def _told(told: str, names: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """Return which class of the model, or "", the user says that each class of the set is."""
    pairs: dict[str, str] = {}
    left = told.strip(" ,")
    while left:
        fits = [(end, own, its) for own in names for its in (*classes, "") if (end := _end_of(own, its, left))]
        if not fits:
            raise _misread(left.partition(",")[0].strip(), names, classes)
        end, own, its = max(fits)
        pairs[own], left = its, left[end:].strip(" ,")
    return pairs


def _end_of(own: str, its: str, text: str) -> int:
    """Return where the pair own=its ends with which a text begins, 0 without; a name may hold commas and signs."""
    found = re.match(rf"{re.escape(own)}\s*=\s*{re.escape(its)}\s*(,|$)", text)
    return found.end() if found else 0


def _misread(pair: str, names: Sequence[str], classes: Sequence[str]) -> FirnError:
    """Return what is wrong with a pair."""
    own, sign, its = (part.strip() for part in pair.rpartition("="))
    if not sign:
        return FirnError(f"expected MAP= as pairs of a class of the set and one of the bundle, a=b,c=d, got {pair!r}")
    return unknown("class of the set", own, names) if own not in names else unknown("class of the bundle", its, classes)


def _what_to_type(
    dataset: Dataset,
    partner: Mapping[str, str | None],
    classes: Sequence[str],
    lacking: Sequence[str],
    told: Mapping[str, str],
    model: str,
) -> str:
    """Return the message for classes without a partner, with a command that says which is which."""
    words = (
        f"{dataset.source.where} has the {'classes' if len(lacking) > 1 else 'class'} {listed(lacking)}, and the "
        f"bundle knows {listed(classes)}"
    )
    for view, merged in dataset.label_views.items():
        if set(merged.values()) <= set(classes):
            return f"{words}; run: {command('validate', MODEL=model, LABELS=view)}"
    pairs = {**told, **_guess(dataset, partner, classes, lacking)}
    guess = ", ".join(f"{name}={its}" for name, its in pairs.items())  # the blank makes a shell's quotes necessary
    typed = command("validate", MODEL=model, MAP=guess)
    return f"{words}; say which is which (with nothing behind the = its images are left out); run: {typed}"


def _guess(
    dataset: Dataset, partner: Mapping[str, str | None], classes: Sequence[str], lacking: Sequence[str]
) -> dict[str, str]:
    """Return which may be meant: the only one left, healthy and finding of two and two, else the most alike."""
    left = [name for name in classes if name not in partner.values()]
    if len(lacking) == len(left) == 1:
        return {lacking[0]: left[0]}
    if len(lacking) == len(left) == len(dataset.classes) == 2:
        return dict(zip(dataset.classes, classes, strict=True))
    return {name: difflib.get_close_matches(name, classes, n=1, cutoff=0)[0] for name in lacking}
