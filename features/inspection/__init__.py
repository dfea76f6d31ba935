"""Inspection of a data set before extraction: survey of its images, thumbnails, diagnoses, throughput."""
