"""Where pictures, labels, groups and splits come from: a row of the table DATASETS or a path, as one Dataset."""

from features.datasets.dataset import SPLITS, Dataset, Source, Stamps
from features.datasets.loading import load_dataset
from features.datasets.table import DATASETS

__all__ = ["DATASETS", "SPLITS", "Dataset", "Source", "Stamps", "load_dataset"]
