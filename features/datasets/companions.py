"""Masks, annotations and thumbnails that lie beside the image they belong to, by the names of files and folders."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

MASKS = "masks, annotations or other drawings beside their image"
THUMBNAILS = "thumbnails beside their image"
_THUMBNAIL = frozenset({"thumb", "thumbs", "thumbnail", "thumbnails", "preview", "previews"})
_DRAWING = frozenset(
    re.findall(
        r"\w+",
        "mask masks seg segs segmentation segmentations segmented annotation annotations annot anno label labels gt "
        "groundtruth truth superpixel superpixels roi rois contour contours outline outlines overlay overlays heatmap "
        "heatmaps manual boundary boundaries",
    )
)
_SPECIAL = _DRAWING | _THUMBNAIL
_WORD = re.compile(r"[^\W\d_]+")
_GAP = re.compile(r"[\s_.-]+")


def companions(ids: Sequence[str], folders: Sequence[str], owners: Sequence[int]) -> dict[int, str]:
    """Return the rows of `ids` that belong to another image, with the reason; `folders[owners[i]]` holds `ids[i]`.

    A file does so where its name is an image's with such a word before or behind (`x_mask.png`, `mask-x.png`), and all
    files of a folder below `folders` that is called so where an image beside that folder has the name of one of them.
    """
    hinted = [row for row, image in enumerate(ids) if _is_hinted(image.lower())]
    if not hinted:
        return {}
    places = {row: place for row in hinted if (place := _special_folder(ids[row], folders[owners[row]]))}
    stems: dict[str, set[str]] = defaultdict(set)  # of the images in each folder
    for row, image in enumerate(ids):
        if row not in places:
            stems[posixpath.dirname(image)].add(_stem(image))
    beside = ((row, _beside(_stem(ids[row]), stems[posixpath.dirname(ids[row])])) for row in hinted)
    return {row: why for row, why in beside if why} | _in_folders(ids, places, stems)


def _is_hinted(image: str) -> bool:
    return "-d." in image or not (_SPECIAL).isdisjoint(_WORD.findall(image))


def _in_folders(ids: Sequence[str], places: dict[int, tuple[str, str]], stems: dict[str, set[str]]) -> dict[int, str]:
    """Return the rows in special folders of which a file is called after an image beside the folder."""
    below: dict[str, set[str]] = defaultdict(set)  # stems of the images anywhere below a folder
    for folder, names in stems.items() if places else ():
        for above in _upwards(folder):
            below[above] |= names
    called = {
        place
        for row, (place, _) in places.items()
        if not below[posixpath.dirname(place)].isdisjoint([_stem(ids[row]), *(b for b, _ in _bases(_stem(ids[row])))])
    }
    return {row: _why(word) for row, (place, word) in places.items() if place in called}


def _upwards(folder: str) -> Iterator[str]:
    """Yield a folder and all folders above it, the last one is empty."""
    while folder:
        yield folder
        folder = posixpath.dirname(folder)
    yield ""


def _special_folder(image: str, owner: str) -> tuple[str, str] | None:
    """Return the outermost folder below `owner` that is called after masks or thumbnails, and the word."""
    parts, above = image.split("/")[:-1], owner.count("/") + 1 if owner else 0
    for depth, part in enumerate(parts[above:], start=above + 1):
        words = _WORD.findall(part.lower())
        if words and words[-1] in _SPECIAL:
            return "/".join(parts[:depth]), words[-1]
    return None


def _stem(image: str) -> str:
    return posixpath.splitext(posixpath.basename(image))[0].lower()


def _beside(stem: str, names: set[str]) -> str:
    """Return why a file belongs to another of the same folder; empty where it does not."""
    return next((_why(word) for base, word in _bases(stem) if base in names and base != stem), "")


def _bases(stem: str) -> Iterator[tuple[str, str]]:
    """Yield what the image may be called to which a file of this name belongs, and the word that says so."""
    words = _WORD.findall(stem)
    if not words:
        return
    if words[-1] in _SPECIAL or stem.endswith("-d"):  # "-d" is Herlev's
        for gap in reversed(list(_GAP.finditer(stem))):
            yield stem[: gap.start()], words[-1]
    if words[0] in _SPECIAL and (first := _GAP.search(stem)):
        yield stem[first.end() :], words[0]


def _why(word: str) -> str:
    return THUMBNAILS if word in _THUMBNAIL else MASKS
