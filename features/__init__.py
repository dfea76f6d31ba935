"""STAGE 1: images -> cached features. Imports nothing of ours.

images --datasets--> bytes --images--> pixels --backbones--> feature maps --extraction--> cache(HDF5) --views--> X, y
"""
