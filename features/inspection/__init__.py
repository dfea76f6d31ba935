"""A look at a data set before hours are spent on it: survey, thumbnails, diagnoses, throughput."""
