"""The loop of stage one: decode | forward | write, overlapped.

job       what is asked for, and what came of it
pictures  threads read, digest and decode a little ahead
forward   the frozen network, batch by batch (packing: as a CPU runs it best; replay: as a GPU does)
lane      one backbone's rows, from waiting pixels to committed shards
run       the loop itself: one decode, any number of lanes
masters   its end: the digests are remembered, the masters written
cluster   the same on Ray, in partitions, on many GPUs or machines
"""

from features.extraction.job import Job, Outcome
from features.extraction.run import extract

__all__ = ["Job", "Outcome", "extract"]
