"""Fine-tuning: the last blocks of a backbone trained from cached maps of the boundary before them.

settings          the table RECIPES, what a user asks for, and the settings of a training; needs no torch
network           tail, mean over positions, classifier; a faster gradient for bfloat16 on a CPU
batches           views of images, read ahead in batches
train             epochs, early stopping, weight averaging
checkpoints       files without a pickle
cross_validation  one training per fold, one on all images
"""
