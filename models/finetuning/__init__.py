"""Fine-tuning: a whole backbone trained on augmented images, or its last blocks from cached maps of the boundary.

settings          the tables RECIPES and AUGMENTATIONS, what a user asks for, the settings of a training; needs no torch
network           tail, mean over positions, classifier; several as one; a faster gradient for bfloat16 on a CPU
augmentation      images varied one by one in batches on the device
images            images decoded once, in memory or in a file mapped into it
batches           views of images, read ahead in batches
train             epochs, early stopping, weight averaging
checkpoints       files without a pickle
cross_validation  one training per fold, one on all images, or one alone; the networks of a run
"""
