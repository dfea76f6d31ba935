"""Image files below a folder: what is listed, and what is left out with the reason (masks, thumbnails, other files)."""

from __future__ import annotations

import os
import posixpath
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.datasets.dataset import LeftOut, Stamps, left_out
from features.errors import BadDataset, BadImage
from features.storage import artifacts_root

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


IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".gif", ".dcm", ".dicom")
_NO_IMAGES = re.compile(
    r"(?i)^(thumbs\.db|dicomdir|.*\.(txt|[ct]sv|tab|xlsx?|ods|json|xml|html?|md|rst|pdf|docx?|rtf|zip|gz|t?ar|7z|rar|db"
    r"|ini|cfg|ya?ml|toml|log|py|ipynb|npy|npz|mat|pkl|pth?|h5|hdf5|parquet|mp4|avi|mov|lnk|url|dvc|sha256|md5))$"
)
_UNREAD = re.compile(
    r"(?i)\.(webp|p[bgpn]m|jp2|j2k|jxl|hei[cf]|avif|svg|nii(\.gz)?|mh[ad]|nrrd|svs|ndpi|mrxs|czi|scn|tga|psd|exr|mp4|avi)$"
)
_SYSTEM_FOLDERS = re.compile(
    r"(?i)^([.@].*|__macosx|#(recycle|snapshot|tmp)|~snapshot|\$recycle\.bin|recycle[rd]|system volume information"
    r"|lost\+found|network trash folder|temporary items)$"
)
_SYSTEM_FILES = re.compile(r"(?i)^(\..*|(eh)?thumbs\.db|desktop\.ini)$")
_BEGINNING = 144  # bytes that tell the format of a file


class Listing(NamedTuple):
    """The images found below a folder, and what the file system said of them on the way."""

    ids: list[str]  # (n,) relative to the folder, '/' as separator; unique and sorted
    stamps: Stamps  # (n,)
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files below `root`; stamps gathered while listing are handed out again instead of asking the disk twice.

    They are older than any later reading, so that a file changed in between has another stamp the next time.
    """

    root: Path
    listing: Listing | None = field(default=None, repr=False)

    @property
    def where(self) -> str:
        """Return the folder."""
        return str(self.root)

    def read(self, image: str) -> bytes:
        """Return the bytes of one file; raise BadImage where it cannot be read."""
        path = posixpath.join(self.root, image)
        try:
            with FileIO(path) as file:  # takes two thirds of the time of Path.read_bytes
                return file.read()
        except OSError as error:
            raise BadImage(f"{path} was listed but cannot be read ({error.strerror}); put it back and rerun") from None

    def stamps(self, images: list[str]) -> Stamps:
        """Return size and times of each image; raise BadDataset where a file is gone."""
        if self.listing is not None and images == self.listing.ids:
            return self.listing.stamps
        numbers = array("q")
        try:
            for image in images:
                found = (self.root / image).stat()
                numbers.extend((found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        except OSError as error:
            raise BadDataset(f"{error.filename} is gone ({error.strerror}); put it back and rerun") from None
        return sorted_stamps(numbers, range(len(images)))


@dataclass
class _Sweep:
    base: str
    keep: re.Pattern[str]
    ids: list[str] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("q"))  # size, mtime and ctime of each id
    hidden: list[str] = field(default_factory=list)  # of the operating system or a NAS
    unread: list[str] = field(default_factory=list)  # images of a kind that is not read
    others: list[str] = field(default_factory=list)  # no images
    unkept: list[str] = field(default_factory=list)


def list_images(root: Path, folders: Iterable[str], keep: str = "") -> tuple[Listing, NDArray[np.int64]]:
    """List the images below each of `folders` (relative to `root`, none inside another) in one sweep of the disk.

    An image is known by its suffix, or by its first bytes where that says nothing. Left out, and recorded, are masks
    and thumbnails beside their image, folders of a NAS or operating system, files that are no images, and ids that the
    regular expression `keep` is not found in. Returns the listing, and (n,) the index of each image's folder. Raises
    BadDataset at a link that leads out of `root` and at a name that is no UTF-8.
    """
    sweep, owners = _Sweep(os.path.realpath(root), re.compile(keep)), array("q")
    for owner, folder in enumerate(folders):
        pending = [folder]
        while pending:
            pending += _scan(pending.pop(), sweep)
        owners.extend([owner] * (len(sweep.ids) - len(owners)))
    _require_text(sweep.ids)
    beside = companions(sweep.ids, list(folders), owners)
    rows = sorted((row for row in range(len(sweep.ids)) if row not in beside), key=sweep.ids.__getitem__)
    ids, order = [sweep.ids[row] for row in rows], np.array(rows, np.int64)
    stamps = sorted_stamps(sweep.numbers, order)
    return Listing(ids, stamps, _left_out(sweep, beside)), np.asarray(owners, np.int64)[order]


def _left_out(sweep: _Sweep, beside: dict[int, str]) -> tuple[LeftOut, ...]:
    found: tuple[LeftOut, ...] = ()
    for reason in sorted(set(beside.values())):
        found += left_out(reason, (sweep.ids[row] for row, why in beside.items() if why == reason), images=True)
    found += left_out("images in a format that Firn does not read", sweep.unread, images=True)
    found += left_out("images that are not of the published set", sweep.unkept)
    found += left_out("folders and files of a NAS or an operating system", sweep.hidden)
    return found + left_out("files that are no images", sweep.others)


def _scan(folder: str, sweep: _Sweep) -> list[str]:
    """Append the images that lie in one folder to the sweep; return its subfolders."""
    below = []
    try:
        with os.scandir(f"{sweep.base}/{folder}") as entries:
            for entry in entries:
                image = f"{folder}/{entry.name}" if folder else entry.name
                if is_system(entry):
                    _note_hidden(entry, image, sweep)
                    continue
                if entry.is_symlink():
                    refuse_link(sweep.base, entry.path)
                if entry.is_dir():
                    below.append(image)
                elif entry.is_file():
                    _take(entry, image, sweep)
    except OSError as error:
        raise BadDataset(f"{error.filename} cannot be listed ({error.strerror}); mend it and rerun") from None
    return below


def _take(entry: os.DirEntry[str], image: str, sweep: _Sweep) -> None:
    """Sort one file into the sweep."""
    name = entry.name
    if not name.lower().endswith(IMAGES) and (_NO_IMAGES.match(name) or not _begins_as_image(entry.path)):
        (sweep.unread if _UNREAD.search(name) else sweep.others).append(image)
    elif not sweep.keep.search(image):
        sweep.unkept.append(image)
    else:
        found = entry.stat()
        sweep.ids.append(image)
        sweep.numbers.extend((found.st_size, found.st_mtime_ns, found.st_ctime_ns))


def _begins_as_image(path: str) -> bool:
    """Tell whether the first bytes of a file are those of a format that is decoded."""
    from features.images.decoding import FORMATS  # imports a decoder for each, so only where a suffix says nothing

    with Path(path).open("rb") as file:
        data = file.read(_BEGINNING)
    for row in FORMATS:
        if data.startswith(row.begins, row.at):
            return row.name != "BMP" or data[6:10] == bytes(4)  # "BM" alone begins many a text
    return False


def is_system(entry: os.DirEntry[str]) -> bool:
    """Tell whether a file or folder belongs to a NAS or an operating system (`@eaDir`, `.DS_Store`), or to Firn."""
    if entry.is_dir() and entry.name == (own := artifacts_root()).name and own.exists() and own.samefile(entry.path):
        return True
    return bool((_SYSTEM_FOLDERS if entry.is_dir() else _SYSTEM_FILES).match(entry.name))


def _note_hidden(entry: os.DirEntry[str], image: str, sweep: _Sweep) -> None:
    """Record a hidden folder, or a hidden file that looks like an image; `.DS_Store` and the like are no loss."""
    if entry.is_dir() or entry.name.lower().endswith(IMAGES):
        sweep.hidden.append(image)


def _require_text(ids: list[str]) -> None:
    """Raise BadDataset at a name that cannot be written as UTF-8 into a cache."""
    for image in ids:
        if not image.isascii():
            try:
                image.encode()
            except UnicodeEncodeError:
                raise BadDataset(f"the name of the file {image!a} is no UTF-8 text; rename it") from None


def refuse_link(base: str, path: str) -> None:
    """Raise BadDataset unless the link at `path` leads to a file below `base`, which itself is free of links.

    Links to folders are refused as well: such a folder may hold the link, and its images would count twice.
    """
    target = os.path.realpath(path)
    if target != base and not target.startswith(base + os.sep):
        raise BadDataset(f"{path} is a link that leads out of {base}, to {target}; put the files themselves there")
    if not Path(target).is_file():
        raise BadDataset(f"{path} is a link to {target}, which is no file; put the files themselves there")


def sorted_stamps(numbers: array[int], order: Sequence[int] | NDArray[np.int64]) -> Stamps:
    """Return the stamps in the given order of images from size (bytes), mtime and ctime (ns) of each in turn."""
    table = np.asarray(numbers, np.int64).reshape(-1, 3)
    return Stamps(*(column[order] for column in table.T))
