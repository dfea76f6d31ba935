"""What a comparison of runs of several findings found: one FindingsRunResult per run, best validation first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from features.version import firn_version
from models.runs.record import RunRecord
from models.runs.results import Score, Verdict

SCHEMA = 1
SHOWN = ("roc_auc", "pr_auc", "sensitivity", "specificity")  # of each finding


@dataclass(frozen=True)
class FindingResult:
    """What one run makes of one finding."""

    name: str
    images: int  # with its label, on the part that is shown
    present: int  # of these
    scores: Mapping[str, Score]  # of SHOWN; decisions by Youden's threshold of out-of-fold predictions
    thresholds: Mapping[str, float]
    against_chosen: Mapping[str, float | None] | None = None  # difference in ROC AUC, p, p adjusted over the findings


@dataclass(frozen=True)
class FindingsRunResult:
    """All that can be said of one run."""

    name: str
    record: RunRecord
    images_per_second: float
    validation: Mapping[str, Score]  # macro roc_auc and pr_auc
    test: Mapping[str, Score] | None  # None where there are no test images
    log_loss: float | None  # of validation, the mean over the findings
    findings: tuple[FindingResult, ...]
    counted: tuple[str, ...]  # findings in the mean that is shown
    micro: Mapping[str, Score] | None = None  # areas over all findings pooled, where asked for
    validation_rank: int = 0
    against_chosen: Verdict | None = None

    @property
    def shown(self) -> Mapping[str, Score]:
        """Return the means on test images, out of fold where there are none."""
        return self.test or self.validation

    def to_json(self) -> dict[str, Any]:
        """Return the result ready for JSON."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        against = self.against_chosen and asdict(self.against_chosen)
        findings = [asdict(finding) for finding in self.findings]
        return own | {"record": self.record.to_json(), "findings": findings, "against_chosen": against}


@dataclass(frozen=True)
class FindingsResult:
    """What `results.json` holds of runs of several findings."""

    runs: tuple[FindingsRunResult, ...]  # best validation first; the first is the chosen one
    images: Mapping[str, int]  # validation, test, groups of those that are shown
    together: Sequence[Sequence[int]]  # images with the finding of the row and of the column; alone on the diagonal
    settings: Mapping[str, Any]
    commands: Sequence[str]
    summary: str = ""
    protocol: Sequence[str] = ()

    @property
    def chosen(self) -> FindingsRunResult:
        """Return the run that validation chose."""
        return self.runs[0]

    @property
    def dataset(self) -> RunRecord:
        """Return a record for what all runs have in common."""
        return self.chosen.record

    @property
    def tested(self) -> bool:
        """Return whether there are test images."""
        return self.chosen.test is not None

    def to_json(self) -> dict[str, Any]:
        """Return the results ready for JSON."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        names = list(self.dataset.classes)
        return own | {
            "schema": SCHEMA,
            "task": "findings",
            "findings": names,
            "chosen": self.chosen.name,
            "runs": [run.to_json() for run in self.runs],
            "firn": firn_version(),
        }
