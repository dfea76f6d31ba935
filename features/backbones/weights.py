"""Where a backbone's weights come from, how they are read without running anybody's code, and their digest."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.backbones.registry import architecture, domains, file_name
from features.datasets.registry import DATASETS
from features.errors import BadWeights, command
from features.progress import say
from features.storage import artifacts_root

if TYPE_CHECKING:
    from torch import Tensor

BUNDLED = Path(__file__).parent / "bundled"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


# Keys under which tensors are saved; averaged ones are taken where there are no others.
WRAPPERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "net",
    "network",
    "ema",
    "model_ema",
    "state_dict_ema",
    "teacher",
)
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.")  # before all names


def find(name: str, file: str, given: str | Path | None = None) -> Path | None:
    """Return the weights file of a backbone, or None where it has to be downloaded.

    In this order: the `given` file, `$FIRN_WEIGHTS/<name>.safetensors|.pth|.pt`, the bundled ones, torchvision's own
    download under the name `file`. Raises BadWeights where the given file or folder is not there.
    """
    if given is not None:
        if not Path(given).is_file():
            raise BadWeights(f"no weights file {given}; give an existing .pth or .safetensors as WEIGHTS=")
        return Path(given)
    found = next(iter(candidates(name, file)), None)
    if (passed := domains(name)) and found is None:
        first, before, named = architecture(name), name.rpartition("@")[0], passed[-1] in DATASETS
        how = command("finetune", DATASET=passed[-1], BACKBONE=before) if named else f"finetune {before} on its path"
        run = "run: " * named + how
        raise BadWeights(f"{name} is {first} as it was fine-tuned on {passed[-1]}, which was not done yet; {run}")
    return found


def candidates(name: str, file: str) -> list[Path]:
    """Return the weights files of a backbone that are there, the one to prefer first; see `find`.

    Raises BadWeights where FIRN_WEIGHTS is no folder.
    """
    folders = [finetuned_root(), BUNDLED]
    if chosen := os.environ.get("FIRN_WEIGHTS"):
        if not Path(chosen).is_dir():
            raise BadWeights(f"FIRN_WEIGHTS={chosen} is no folder; unset it or point it at <backbone>.pth files")
        folders.insert(0, Path(chosen))
    named = [folder / f"{file_name(name)}{suffix}" for folder in folders for suffix in _SUFFIXES]
    downloaded = [] if domains(name) or not file else [_downloads() / file]
    return [path for path in [*named, *downloaded] if path.is_file()]


def finetuned_root() -> Path:
    """Return the folder of backbones that were fine-tuned on a data set: <backbone>@<data set>.safetensors."""
    return artifacts_root() / "backbones"


def _downloads() -> Path:
    """Return the folder of torch.hub's downloads, without importing torch."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub" / "checkpoints"


def download(name: str, url: str) -> Path:
    """Download torchvision's weights with torch.hub, which checks the hash in the file's name."""
    import torch

    target = _downloads() / url.rsplit("/", 1)[-1]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(target), hash_prefix=target.stem.rsplit("-", 1)[-1], progress=False)
    except (OSError, RuntimeError) as error:
        raise BadWeights(
            f"no weights for {name}, and torchvision's download failed ({error}); put the file at {target} "
            f"or as {name}.pth into the folder FIRN_WEIGHTS, or use BACKBONE=squeezenet1_1, which is bundled"
        ) from None
    return target


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.safetensors` or a `torch.save` file, bare or under a `model` or `state_dict` key.

    Only tensors are read (`weights_only=True`): a pickle that would run code is refused with BadWeights.
    """
    import torch

    _refuse_text(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BadWeights(
            f"{path} holds more than tensors and would have to run code to load; "
            "save it anew with torch.save(model.state_dict(), path)"
        ) from None
    except Exception as error:  # torch, zipfile and safetensors raise many kinds for a broken file
        raise BadWeights(f"cannot read weights from {path}: {type(error).__name__}: {_first_line(error)}") from None
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, torch.Tensor) for v in content.values())
    ):
        raise BadWeights(f"{path} is no state dict: expected names -> tensors, bare or under {', '.join(WRAPPERS)}")
    return _bare({str(name): tensor for name, tensor in content.items()})


def _refuse_text(path: Path) -> None:
    """Raise BadWeights for what is often saved in place of weights: a Git LFS pointer, a web page, a text."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"version https://git-lfs"):
        raise BadWeights(f"{path} is a Git LFS pointer and not the weights; run: git lfs pull, in its repository")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise BadWeights(f"{path} is a web page and not the weights; download the file itself")
    if head and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        raise BadWeights(f"{path} is a text and no weights; expected a .pth (torch.save) or .safetensors file")


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without what wrappers put before all their names: `module.`, `_orig_mod.`, `model.`, ..."""
    while first := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(first): tensor for name, tensor in state.items()}
    return state


def renamed(state: Mapping[str, Tensor], names: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Return tensors under a library's names, a publisher's names being replaced by one pattern after the other.

    Tensors whose new name is empty are left out. Queries, keys and values that a publisher keeps apart
    (`attn.q`, `.k`, `.v`) become one tensor, `attn.qkv`.
    """
    import torch

    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    found.pop("", None)
    for query in [name for name in found if ".attn.q." in name]:
        parts = [found.pop(query.replace(".attn.q.", f".attn.{one}."), None) for one in "qkv"]
        if whole := [part for part in parts if part is not None]:
            found[query.replace(".attn.q.", ".attn.qkv.")] = torch.cat(whole)
    return found


def bared(state: dict[str, Tensor], used: Collection[str], path: Path) -> dict[str, Tensor]:
    """Return tensors without what stands before the names of a network in use; those without it are left out.

    That is how a network is saved inside another one: with a loss, another head, beside averages of itself. Where it is
    there several times, the one of the shortest prefix is taken, and a line says so.
    """
    probes = [f".{name}" for name in [*used][:3]]
    prefixes = {name[: len(name) - len(p) + 1] for name in state for p in probes if name.endswith(p)}
    found = {prefix: sum(f"{prefix}{name}" in state for name in used) for prefix in {"", *prefixes}}
    most = [prefix for prefix in sorted(found, key=len) if found[prefix] == max(found.values())]
    if not (first := most[0]):
        return state
    if others := most[1:]:
        say(f"{path} has the network under {', '.join(most)}; {first} is taken, not {', '.join(others)}")
    return {name.removeprefix(first): tensor for name, tensor in state.items() if name.startswith(first)}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def select(
    state: Mapping[str, Tensor], used: Mapping[str, Tensor], known: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Return float32 tensors for the part of the network in use.

    `used` are the tensors of the network up to its last tap, `known` those of the whole network: a classifier that is
    missing, of other names or of another number of classes is no fault, a layer too many in a module in use is one.
    Raises BadWeights naming what is missing, unexpected or of another shape.
    """
    counters = {name for name in used if name.endswith("num_batches_tracked")}  # not used in eval mode, often left out
    missing = sorted(set(used) - set(state) - counters)
    unexpected = sorted(set(state) - set(known))
    misshapen = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in used.items()
        if name in state and state[name].shape != tensor.shape
    ]
    inside = {name.partition(".")[0] for name in used}
    if not missing and not any(name.partition(".")[0] in inside for name in unexpected):
        unexpected = []  # another head
    faults = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if faults:
        raise BadWeights(f"{path} does not fit the backbone: {'; '.join(faults)} tensors")
    for name in used:
        if name in state and name not in counters and (wrong := int((~state[name].isfinite()).sum())):
            raise BadWeights(f"{path}: {wrong:,} values of {name} are NaN or infinite; take an earlier checkpoint")
    taken = {name: state[name] for name in used if name in state and name not in counters}
    return {n: t.float() if used[n].is_floating_point() else t.to(used[n].dtype) for n, t in taken.items()}


def digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, shapes and float32 values, so the same numbers in another file are the same."""
    hasher = hashlib.sha256()
    for name in sorted(state):
        values = state[name].float().contiguous().numpy()
        hasher.update(f"{name}{values.shape}".encode())
        hasher.update(values.data)
    return hasher.hexdigest()
