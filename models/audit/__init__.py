"""Data audit: leaks between splits, duplicates, probable label errors, outliers and blank images.

subject       what is audited: features, labels, splits, groups, digests, thumbnails
neighbours    nearest neighbours and distances, block by block (never an n x n array), and outliers
duplicates    pairs with the same bytes, and near-duplicates after image registration
label_errors  probable label errors by confident learning
leakage       the test ROC AUC with and without leaked images
checks        the table CHECKS: from the evidence of all of these to findings
"""

from models.audit.checks import CHECKS, Check, Evidence, Finding, find_all
from models.audit.leakage import Leakage, measure_leakage
from models.audit.subject import Subject

__all__ = ["CHECKS", "Check", "Evidence", "Finding", "Leakage", "Subject", "find_all", "measure_leakage"]
