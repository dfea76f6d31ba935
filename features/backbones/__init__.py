"""Frozen networks of torchvision and timm: the table BACKBONES, their blocks (taps), weights and preprocessing.

registry  the hand-checked rows and published weights; every other classifier goes through the same mechanism
weights   where a state dict comes from, how it is read safely, its digest
layouts   tokens and maps of transformers
spec      what stage one needs to know of a backbone, in plain values that need no torch
torchvision_networks, timm_networks  how a library's networks are built, traced, and given weights
build     the network in torch, cut after its last tap: images -> {block: feature map}; and its tail, to be trained
load      the spec of a backbone by its name, remembered between runs
"""

from features.backbones.load import load_spec, make_spec, spec_of_digest
from features.backbones.registry import BACKBONES, Row
from features.backbones.spec import BackboneSpec

__all__ = ["BACKBONES", "BackboneSpec", "Row", "load_spec", "make_spec", "spec_of_digest"]
