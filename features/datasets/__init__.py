"""Where images, labels, groups and splits come from: a row of the table DATASETS or a path, as one Dataset."""

from features.datasets.dataset import SPLITS, Dataset, Source, Stamps
from features.datasets.load import load_dataset
from features.datasets.registry import DATASETS

__all__ = ["DATASETS", "SPLITS", "Dataset", "Source", "Stamps", "load_dataset"]
