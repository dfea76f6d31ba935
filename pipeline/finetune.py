"""finetune: a whole backbone trained on images, or its last blocks from cached maps; a run beside the heads'."""

from __future__ import annotations

from features.options import FeatureOptions
from models.finetuning.settings import FinetuneOptions
from models.runs.finetune import finetuned, write_backbone
from models.runs.options import RunOptions, SeedOptions


def finetune(features: FeatureOptions, finetuning: FinetuneOptions, run: RunOptions, spread: SeedOptions) -> list[str]:
    """Train each backbone, or its last blocks, under a protocol; return one line per run.

    A run that is there is not trained again; one that was interrupted goes on from its last epoch.
    """
    return [
        f"ready: finetuned on {done.stage.name} {done.described} {done.folder()}; backbone {write_backbone(done)}"
        for done in finetuned(features, finetuning, run, seeds=spread.seeds)
    ]
