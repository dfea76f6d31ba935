"""A pack of features as a data set: labels, splits and groups as they were packed, and no images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from features.datasets.dataset import Dataset
from features.datasets.findings import findings_of
from features.errors import BadDataset
from features.storage import slug

if TYPE_CHECKING:
    from features.cache.pack import Pack


@dataclass(frozen=True)
class Packed:
    """The source of a data set that came without its images: whoever asks for one gets a BadDataset."""

    pack: Pack

    @property
    def where(self) -> str:
        """Return the path of the pack."""
        return str(self.pack.path)

    def read(self, image: str) -> NoReturn:
        """Raise BadDataset: a pack holds no images."""
        self._refuse()

    def stamps(self, images: list[str]) -> NoReturn:
        """Raise BadDataset: a pack holds no images."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BadDataset(
            f"{self.where} is a pack: features of {self.pack.key.backbone} without the images; it serves train-heads "
            "and compare, and this needs the images"
        )


def read_pack(path: Path) -> Dataset:
    """Read what a pack says of its images, under the name of the data set that was packed.

    Raises CacheError for another kind of HDF5 file and for damage.
    """
    from features.cache.pack import open_pack  # the cache knows data sets, so only on the way, and h5py takes its time

    pack = open_pack(path)
    manifest = pack.manifest()
    order, about = np.argsort(manifest.ids, kind="stable"), manifest.about
    ids, splits, groups = (np.char.decode(c[order], "utf-8") for c in (manifest.ids, manifest.splits, manifest.groups))
    return Dataset(
        name=slug(about["dataset"]),
        classes=tuple(about["classes"]),
        ids=ids.tolist(),
        labels=manifest.labels[order],
        splits=splits,
        groups=groups,
        source=Packed(pack),
        grouped_by=about["grouped_by"],
        split_by=about["split_by"],
        label_views=about["label_views"],
        note=about["note"],
        findings=findings_of(about),
    )
