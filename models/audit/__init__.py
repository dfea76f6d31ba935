"""The audit: what is wrong with the pictures and labels themselves, before any score is believed.

subject     what is looked at: features, labels, splits, groups, digests, thumbnails
neighbours  nearest rows and distances, block by block: never an n x n array
alignment   whether two thumbnails show the same picture, after one is laid over the other
duplicates  pairs with the same bytes, and pairs with the same picture
labels      labels that the other pictures contradict (confident learning)
outliers    pictures far from all others, and pictures with nothing on them
leakage     the test score with and without the pictures that the training set knows
evidence    all of the above, each made when a check first asks for it
checks      the table CHECKS: from evidence to findings
"""

from models.audit.checks import CHECKS, Check, Evidence, Finding, find_all
from models.audit.leakage import Leakage, measure_leakage
from models.audit.subject import Subject

__all__ = ["CHECKS", "Check", "Evidence", "Finding", "Leakage", "Subject", "find_all", "measure_leakage"]
