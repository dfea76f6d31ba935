"""finetune: the last blocks of a backbone, trained from cached maps; a run beside those of the heads."""

from __future__ import annotations

from features.options import FeatureOptions
from models.finetuning.settings import FinetuneOptions
from models.runs.finetune import finetuned, write_backbone
from models.runs.options import RunOptions


def finetune(features: FeatureOptions, finetuning: FinetuneOptions, run: RunOptions) -> list[str]:
    """Train the last blocks of each backbone under a protocol; return one line per run.

    A run that is there is not trained again; one that was interrupted goes on from its last epoch.
    """
    return [
        f"ready: finetuned on {done.stage.name} {done.described} {done.folder()}; backbone {write_backbone(done)}"
        for done in finetuned(features, finetuning, run)
    ]
