"""Metrics with confidence intervals, paired tests, ROC and PR curves, operating points and calibration.

(y, proba, groups) --sample--> checked --registry--> value of each metric --delong, linear, bootstrap--> interval

Class 1 of two is the positive one. Groups (patients, slides) are what is independent of each other: intervals and tests
draw whole groups. Nothing here sees a model or an image, and nothing imports torch.
"""

from models.metrics.bootstrap import Interval
from models.metrics.calibration import (
    CALIBRATIONS,
    Calibration,
    CalibrationLine,
    Isotonic,
    Platt,
    Reliability,
    Temperature,
    calibration_from_json,
    calibration_line,
    fit_isotonic,
    fit_platt,
    fit_temperature,
    reliability_curve,
)
from models.metrics.delong import DeLong, delong
from models.metrics.ordered import ordered_metrics
from models.metrics.registry import METRICS, Metric, score
from models.metrics.roc import Band, pr_curve_band, roc_curve_band
from models.metrics.sample import BadPredictions
from models.metrics.significance import (
    PairedTest,
    SimultaneousTest,
    bootstrap_test,
    claim,
    compare_pairs,
    compare_with,
    delong_test,
    holm,
    score_of_the_chosen,
)
from models.metrics.subgroups import (
    AGGREGATES,
    COMPARED,
    Subgroup,
    SubgroupTable,
    in_bins,
    predictions_by_group,
    probabilities_by_group,
    subgroup,
    subgroup_tables,
)
from models.metrics.thresholds import (
    NetBenefit,
    RateAtRate,
    at_prevalence,
    estimated_prevalence,
    net_benefit,
    operating_points,
    rates,
)

__all__ = [
    "AGGREGATES",
    "CALIBRATIONS",
    "COMPARED",
    "METRICS",
    "BadPredictions",
    "Band",
    "Calibration",
    "CalibrationLine",
    "DeLong",
    "Interval",
    "Isotonic",
    "Metric",
    "NetBenefit",
    "PairedTest",
    "Platt",
    "RateAtRate",
    "Reliability",
    "SimultaneousTest",
    "Subgroup",
    "SubgroupTable",
    "Temperature",
    "at_prevalence",
    "bootstrap_test",
    "calibration_from_json",
    "calibration_line",
    "claim",
    "compare_pairs",
    "compare_with",
    "delong",
    "delong_test",
    "estimated_prevalence",
    "fit_isotonic",
    "fit_platt",
    "fit_temperature",
    "holm",
    "in_bins",
    "net_benefit",
    "operating_points",
    "ordered_metrics",
    "pr_curve_band",
    "predictions_by_group",
    "probabilities_by_group",
    "rates",
    "reliability_curve",
    "roc_curve_band",
    "score",
    "score_of_the_chosen",
    "subgroup",
    "subgroup_tables",
]
