"""Thaw: the last blocks of a backbone trained from cached maps of the boundary before them.

recipes      the table RECIPES and the settings of a training; the only part that needs no torch
network      tail, mean over positions, classifier
convolution  a faster gradient for bfloat16 on a CPU
inputs       views of images, read ahead in batches
training     epochs, early stopping, weight averaging
checkpoints  files without a pickle
crossfit     one training per fold, one on all images
"""
