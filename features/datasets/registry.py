"""The table DATASETS of published data sets: where each lies, its classes, groups and licence."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from features.errors import BadDataset
from features.storage import artifacts_root, data_root

Groups = Callable[[Path, list[str]], list[str] | None]  # root of the data set, ids -> a group each, or None if unknown


def unknown_groups(root: Path, ids: list[str]) -> None:
    """Return None: no groups are known."""


def from_name(pattern: str) -> Groups:
    """Return a parser that reads each group from the image's path: what `pattern` captures there, joined by '/'.

    An image whose id does not match is a group of its own; the groups are unknown where none matches.
    """
    name = re.compile(pattern)

    def parse(root: Path, ids: list[str]) -> list[str] | None:
        found = [name.search(image) for image in ids]
        if not any(found):
            return None
        return [
            "/".join(filter(None, match.groups())) if match else image for match, image in zip(found, ids, strict=True)
        ]

    return parse


def from_table(file: str, column: str) -> Groups:
    """Return a parser that looks the group up in a CSV below the root, by the columns `class` and `file`.

    The groups, numbered anew in each class, read "class/number"; they are unknown where there is no such CSV. Raises
    BadDataset where the CSV lacks a column or an image.
    """

    def look_up(root: Path, ids: list[str]) -> list[str] | None:
        path = root / file
        if not path.is_file():
            return None
        try:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                known = {
                    f"{row['class']}/{row['file']}": f"{row['class']}/{row[column]}" for row in csv.DictReader(lines)
                }
        except KeyError as error:
            raise BadDataset(f"{path} has no column {error}; expected class, file and {column}") from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise BadDataset(f"{path} cannot be read ({error}); mend it, or remove it to do without groups") from None
        names = ["/".join(image.split("/")[-2:]) for image in ids]
        if strange := [image for image in names if image not in known]:
            raise BadDataset(f"{path} does not list {strange[0]}; add its line, or remove the CSV to do without groups")
        return [known[image] for image in names]

    return look_up


@dataclass(frozen=True)
class Row:
    """A published data set: its classes, its place on the disk, its groups and where to get it."""

    classes: tuple[str, ...]  # class folders in the order of the labels, the negative ones first
    places: tuple[str, ...]  # folders of class folders, a table of findings or a `.npz`; the first there is
    obtain: str  # where to get it, for the error
    note: str  # licence, citation, "synthetic"
    base: Callable[[], Path] = data_root
    keep: str = ""  # regular expression that an id must match somewhere
    groups: Groups = unknown_groups
    grouped_by: str = ""  # what a group is
    ungrouped: str = ""  # what to mind where the groups are unknown
    label_views: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # view -> class -> merged class
    prepare: Callable[[Path], None] | None = None  # make the first place where none is there


def _draw_phantom(folder: Path) -> None:
    from features.datasets.phantom import draw_phantom

    draw_phantom(folder)


def _draw_phantom_findings(table: Path) -> None:
    from features.datasets.phantom_findings import draw_phantom_findings

    draw_phantom_findings(table.parent)


def published(url: str, checksum: str) -> Callable[[Path], None]:
    """Return what downloads a published file to its place and verifies it, `checksum` as in `fetch`."""

    def prepare(target: Path) -> None:
        from features.datasets.download import fetch

        fetch(url, checksum, target)

    return prepare


_MEDMNIST = "https://zenodo.org/records/10519652/files"


DATASETS: dict[str, Row] = {
    # Patients are counted in four series (bacteria, virus, IM, NORMAL2-IM); no number of a series is in both splits.
    # Whether two series mean one patient by one number is nowhere said, so within a split they are taken for one: too
    # coarse a group costs power, too fine a one leaks. Equal numbers across splits are of two series, hence kept apart.
    "pneumonia": Row(
        classes=("NORMAL", "PNEUMONIA"),
        places=("pneumonia", "chest_xray", "chest_xray/chest_xray", "ChestXRay2017/chest_xray"),
        obtain="Kermany et al., Labeled OCT and Chest X-Ray Images, Mendeley Data doi:10.17632/rscbjbr9sj",
        note="Paediatric chest X-rays. Kermany et al. 2018, doi:10.1016/j.cell.2018.02.010. CC BY 4.0.",
        groups=from_name(r"^(?:([^/]+)/)?[^/]+/(?:NORMAL2-)?(IM-\d+|person\d+)[-_][^/]*$"),
        grouped_by="patient",
    ),
    "colon": Row(
        classes=("colon_n", "colon_aca"),
        places=("colon", "lung_colon_image_set/colon_image_sets", "colon_image_sets"),
        obtain="Borkowski et al., LC25000 lung and colon histopathological image dataset, arXiv:1912.12142",
        note="H&E patches of colon (LC25000). Cite Borkowski et al. 2019, arXiv:1912.12142. No patients are known.",
        groups=from_table("files.csv", "source_patch_cluster"),
        grouped_by="source patch",
        ungrouped="No files.csv tells which images are augmented copies of one patch: copies may lie on both sides.",
    ),
    "cervical": Row(
        classes=(
            "normal_superficiel",
            "normal_intermediate",
            "normal_columnar",
            "light_dysplastic",
            "moderate_dysplastic",
            "severe_dysplastic",
            "carcinoma_in_situ",
        ),
        places=(
            "cervical",
            "cervical/New database pictures",
            "smear2005/New database pictures",
            "New database pictures",
        ),
        obtain="Jantzen et al., Pap-smear benchmark data for pattern classification (Herlev), NiSIS 2005",
        note="Single Pap-smear cells (Herlev). Cite Jantzen et al. 2005, NiSIS, pp. 1-9.",
        keep=r"(?i)(?<!-d)\.[a-z]+$",  # "...-d.bmp" are the segmentations that lie beside the images
        groups=from_name(r"(\d+)-\d+-\d+[^/]*$"),
        grouped_by="acquisition group",
        label_views={
            "binary": {
                "normal_superficiel": "normal",
                "normal_intermediate": "normal",
                "normal_columnar": "normal",
                "light_dysplastic": "abnormal",
                "moderate_dysplastic": "abnormal",
                "severe_dysplastic": "abnormal",
                "carcinoma_in_situ": "abnormal",
            }
        },
    ),
    "phantom": Row(
        classes=("clear", "opacity"),
        places=("phantom",),
        obtain="Firn draws it by itself",
        note="Synthetic: a chest phantom drawn by Firn; no patient was ever in it.",
        base=artifacts_root,
        groups=from_name(r"(p\d+)_[^/]*$"),
        grouped_by="patient",
        prepare=_draw_phantom,
    ),
    "phantom-findings": Row(
        classes=(),
        places=("phantom-findings/findings.csv",),
        obtain="Firn draws it by itself",
        note="Synthetic: a chest phantom with several findings per image, drawn by Firn; no patient was ever in it.",
        base=artifacts_root,
        prepare=_draw_phantom_findings,
    ),
    "pneumoniamnist": Row(
        classes=("normal", "pneumonia"),
        places=("pneumoniamnist_224.npz",),
        obtain="Yang et al., MedMNIST+, doi:10.5281/zenodo.10519652",
        note="PneumoniaMNIST+ (224 x 224). Yang et al. 2023, doi:10.1038/s41597-022-01721-8. CC BY 4.0.",
        prepare=published(f"{_MEDMNIST}/pneumoniamnist_224.npz", "md5:d6a3c71de1b945ea11211b03746c1fe1"),
    ),
    "chestmnist": Row(
        classes=(
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural",
            "hernia",
        ),
        places=("chestmnist.npz",),
        obtain="Yang et al., MedMNIST v2, doi:10.5281/zenodo.10519652",
        note="ChestMNIST (28 x 28, of NIH ChestX-ray14). Yang et al. 2023, doi:10.1038/s41597-022-01721-8. CC BY 4.0.",
        ungrouped="Images of one patient are not marked: folds may part them, and intervals count images.",
        prepare=published(f"{_MEDMNIST}/chestmnist.npz", "md5:02c8a6516a18b556561a56cbdd36c4a8"),
    ),
    "sipakmed": Row(
        classes=(
            "im_Superficial-Intermediate",
            "im_Parabasal",
            "im_Metaplastic",
            "im_Koilocytotic",
            "im_Dyskeratotic",
        ),
        places=("sipakmed", "SIPaKMeD", "sipakmed/SIPaKMeD", "archive"),
        obtain="Plissiti et al., SIPaKMeD, doi:10.1109/ICIP.2018.8451588",
        note="Single Pap-smear cells (SIPaKMeD). Cite Plissiti et al. 2018, doi:10.1109/ICIP.2018.8451588.",
        keep=r"(?i)/CROPPED/[^/]+\.bmp$",  # the images of whole slides lie one level higher
        groups=from_name(r"(im_[^/]+)/(?:[^/]+/)*(\d+)_\d+\.[^/]+$"),
        grouped_by="slide",
        label_views={
            "binary": {
                "im_Superficial-Intermediate": "normal",
                "im_Parabasal": "normal",
                "im_Metaplastic": "normal",  # benign by the publisher
                "im_Koilocytotic": "abnormal",
                "im_Dyskeratotic": "abnormal",
            }
        },
    ),
}
