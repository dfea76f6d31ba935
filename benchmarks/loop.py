"""The loop that everyone writes for features of the last block; it imports nothing of Firn.

python -m benchmarks.loop '{"folder": "images", "network": "resnet18", "node": "layer4", ...}'
"""

from __future__ import annotations

import json
import sys
from typing import Any

import h5py
import numpy as np
import torch
import torchvision
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models.feature_extraction import create_feature_extractor


def loader(folder: str, preprocessing: str, workers: int = 2) -> Any:
    """Return ImageFolder and DataLoader with the preprocessing that weights of torchvision bring."""
    transforms = torchvision.models.get_weight(preprocessing).transforms()
    return DataLoader(ImageFolder(folder, transforms), batch_size=32, num_workers=workers)


def loop(
    *,
    folder: str,
    network: str,
    options: dict[str, Any],
    node: str,
    weights: str,
    preprocessing: str,
    file: str,
    device: str,
    workers: int,
    precision: str,
) -> None:
    """Run one batch after the other and write HDF5; in half precision with channels last, which is one line more."""
    model = torchvision.models.get_model(network, weights=None, **options)
    model.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    half = {"dtype": getattr(torch, precision), "memory_format": torch.channels_last}
    how: Any = {} if precision == "float32" else half
    model = create_feature_extractor(model.eval(), {node: "last"}).to(device, **how)
    rows = []
    with torch.no_grad():
        for x, _ in loader(folder, preprocessing, workers):
            rows.append(model(x.to(device, **how))["last"].float().mean((2, 3)).cpu().numpy())
    with h5py.File(file, "w") as out:
        out.create_dataset("features", data=np.concatenate(rows))


if __name__ == "__main__":
    loop(**json.loads(sys.argv[1]))
