"""STAGE 1: pictures -> cached features. Imports nothing of ours.

pictures --datasets--> bytes --images--> pixels --backbones--> feature maps --extraction--> cache(HDF5) --views--> X, y
"""
