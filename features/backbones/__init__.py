"""Frozen torchvision CNNs: the table BACKBONES, their blocks (taps), weights and preprocessing.

table    the hand-checked rows; every other torchvision CNN classifier goes through the same mechanism
weights  where a state dict comes from, how it is read safely, its digest
taps     the network cut after the last tap: images -> {block: feature map}
recipe   all of the above in plain values that need no torch, remembered between runs
"""

from features.backbones.registry import BACKBONES, Row
from features.backbones.spec import Recipe, load_recipe, make_recipe, recipe_of_digest

__all__ = ["BACKBONES", "Recipe", "Row", "load_recipe", "make_recipe", "recipe_of_digest"]
