"""The audit: what is wrong with the images and labels themselves, before any score is believed.

subject     what is looked at: features, labels, splits, groups, digests, thumbnails
neighbours  nearest rows and distances, block by block: never an n x n array
alignment   whether two thumbnails show the same image, after one is laid over the other
duplicates  pairs with the same bytes, and pairs with the same image
labels      labels that the other images contradict (confident learning)
outliers    images far from all others, and images with nothing on them
leakage     the test score with and without the images that the training set knows
evidence    all of the above, each made when a check first asks for it
checks      the table CHECKS: from evidence to findings
"""

from models.audit.checks import CHECKS, Check, Evidence, Finding, find_all
from models.audit.leakage import Leakage, measure_leakage
from models.audit.subject import Subject

__all__ = ["CHECKS", "Check", "Evidence", "Finding", "Leakage", "Subject", "find_all", "measure_leakage"]
