"""What other verbs have found of the same pictures, for the page to show; where they have not, what to type."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from models.audit import CHECKS
from models.runs.record import Run
from models.runs.summary import make_command
from pipeline.render.audit_page import findings_folder, load_findings, summary
from pipeline.render.learning import load_learning

__all__ = ["GALLERY", "NOTHING", "Extras", "audit_command", "audit_of", "commands", "load_extras", "report_command"]

GALLERY = "gallery.json"  # beside the page: `report` writes it, and `compare` shows it again
_JPEG = "data:image/jpeg;base64,"
_AUDITED = ("DATASET", "LABELS")  # settings of a comparison that an audit takes too
Content = Mapping[str, Any]


class Extras(NamedTuple):
    """None where there is none, or where it is of other pictures or of another run."""

    learning: Content | None = None
    gallery: Content | None = None
    audit: Content | None = None
    no_gallery: str = ""  # why, where it was asked for


NOTHING = Extras()


def load_extras(folder: Path, results: Mapping[str, Any], chosen: Run) -> Extras:
    """Return what is at hand for the comparison in `folder`, whose chosen run is `chosen`."""
    data = results["dataset"]
    return Extras(
        load_learning(folder, data["manifest"]),
        _gallery(folder, results, chosen),
        load_findings(data["name"], data["labels"], data["manifest"]),
    )


def _gallery(folder: Path, results: Mapping[str, Any], chosen: Run) -> Content | None:
    try:
        content: Content = json.loads((folder / GALLERY).read_text(encoding="utf-8"))
        facts = (results["chosen"], chosen.facts.get("identity", ""), results["dataset"]["manifest"])
        same = facts == tuple(content[name] for name in ("run", "identity", "manifest"))
        pictures = [tile for line in content["lines"] for tile in line["pictures"]] if same else []
        sound = all(
            tile["picture"].startswith(_JPEG) and tile["map"].startswith(_JPEG[: len(tile["map"])]) for tile in pictures
        )
        return content if same and sound else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def audit_of(content: Content | None) -> dict[str, Any] | None:
    """Return what the page says of an audit: the sentences, a row for each check that found something, where it is."""
    if content is None:
        return None
    rows = [
        (CHECKS[name].title, CHECKS[name].severity, count, content["examples"][name][0])
        for name, count in content["counts"].items()
        if count and name in CHECKS
    ]
    place = "/".join(findings_folder(content["dataset"], content["labels"]).parts[-2:])
    return {"summary": summary(content), "rows": rows, "place": f"{place}/audit.html"}


def commands(results: Mapping[str, Any], extras: Extras) -> Sequence[str]:
    """Return the commands that make the same page again."""
    more = [content["command"] for content in (extras.audit, extras.learning) if content and content.get("command")]
    return [*results["commands"], *more, report_command(results)]


def report_command(results: Mapping[str, Any]) -> str:
    """Return the command that makes the page with everything on it."""
    return "make report" + str(results["commands"][-1]).removeprefix("make compare")


def audit_command(results: Mapping[str, Any]) -> str:
    """Return the command that makes the audit that is missing."""
    key, words = results["runs"][0]["keys"][0], shlex.split(results["commands"][-1])
    asked = [(name, value) for name, _, value in (word.partition("=") for word in words) if name in _AUDITED]
    pixels = (("PREPROCESS", key["preprocess"].partition(":")[0]), ("PRECISION", key["precision"]))
    return make_command("audit", *asked, ("BACKBONE", key["backbone"]), *pixels)
