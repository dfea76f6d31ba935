"""Features of 20 families of timm against timm's own: largest difference of any block, pooling and class token.

Random weights, float32, two images. Exits with 1 where a family is off by more than 1e-5 of the norm of its features.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

FAMILIES = (
    "resnet18@96",
    "convnext_atto@96",
    "convnextv2_atto@96",
    "efficientnet_b0@96",
    "mobilenetv3_small_050@96",
    "regnety_002@96",
    "densenet121@96",
    "nfnet_l0@96",
    "fastvit_t8@96",
    "mobilevit_xxs@96",
    "vit_tiny_patch16_224@96",
    "vit_small_patch14_dinov2@98",
    "vit_small_patch14_reg4_dinov2@98",
    "vit_small_patch16_dinov3@96",
    "deit_tiny_distilled_patch16_224@96",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224@98",
    "swin_tiny_patch4_window7_224",
    "maxvit_tiny_tf_224",
    "coatnet_nano_rw_224",
)


def largest_difference(name: str, folder: Path) -> float:
    """Return the largest difference of a family's features from timm's, relative to the norm of each."""
    import timm

    from features.backbones import make_spec
    from features.backbones.registry import file_name, size_of
    from features.extraction.forward import Forward, to_arrays

    side = {"img_size": size_of(name)} if size_of(name) else {}
    try:
        model: Any = timm.create_model(file_name(name), **side)
    except TypeError:
        model = timm.create_model(file_name(name))
    scramble(model.eval())
    torch.save(model.state_dict(), folder / "timm" / f"{file_name(name)}.pth")
    spec = make_spec(f"timm/{name}")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, spec.size, spec.size), dtype=np.uint8)
    got = to_arrays(Forward(spec, maps=list(spec.blocks), stored="float32", batch_size=2)(pixels))
    with torch.inference_mode():
        wanted = expected(model, torch.from_numpy(spec.normalised(pixels)), list(spec.blocks))
    assert set(got) == set(wanted), sorted(set(got) ^ set(wanted))
    return max(float(np.linalg.norm(got[n] - t.numpy()) / t.norm()) for n, t in wanted.items())


def scramble(model: torch.nn.Module) -> None:
    """Give a network numbers that are not those of a fresh one: small gains, statistics of batch-norm."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean") or (tensor.requires_grad and tensor.ndim == 1):
                tensor.add_(0.1 * torch.randn(tensor.shape))


def expected(model: Any, images: torch.Tensor, blocks: list[str]) -> dict[str, torch.Tensor]:
    """Return what timm's `forward_intermediates` and `forward_features` give, pooled."""
    every = model.forward_intermediates(images, norm=False, intermediates_only=True, output_fmt="NCHW")
    last = model.forward_features(images)
    modules = [stage["module"] for stage in getattr(model.feature_info, "info", model.feature_info)]
    maps = dict(zip(modules, every, strict=True))
    side, out = maps[blocks[-1]].shape[-1], {}
    if last.ndim == 3:
        prefix = last.shape[1] - side**2
        if prefix:
            out[f"pooled/{blocks[-1]}/cls"] = last[:, 0]
            tokens = model.forward_intermediates(
                images, norm=False, intermediates_only=True, output_fmt="NCHW", return_prefix_tokens=True
            )
            first = dict(zip(modules, [prefix[:, 0] for _, prefix in tokens], strict=True))
            out |= {f"pooled/{block}/cls": first[block] for block in blocks[:-1]}
        last = last[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
    elif last.shape[-1] != side:
        last = last.permute(0, 3, 1, 2)
    maps[blocks[-1]] = last
    for block in blocks:
        out |= {f"maps/{block}": maps[block], f"pooled/{block}/avg": maps[block].mean((2, 3))}
        out[f"pooled/{block}/max"] = maps[block].amax((2, 3))
    return out


def main() -> int:
    """Print a line for each family."""
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FIRN_WEIGHTS"] = os.environ["FIRN_ARTIFACTS"] = folder
        (Path(folder) / "timm").mkdir()
        for name in sys.argv[1:] or FAMILIES:
            start = time.perf_counter()
            found = largest_difference(name, Path(folder))
            worst = max(worst, found)
            print(f"{name:36} {found:.1e}  {time.perf_counter() - start:5.1f} s", flush=True)
    print(f"largest: {worst:.1e}")
    return int(not worst <= 1e-5)


if __name__ == "__main__":
    sys.exit(main())
