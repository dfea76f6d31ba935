"""The loop of stage one: decode | forward | write, overlapped.

job           what is asked for, and what came of it
prefetch      threads read, digest and decode a little ahead
forward       the frozen network, batch by batch (onednn: as a CPU runs it best; cuda_graph: as a GPU does)
workers       who runs the networks: one thread per core on a CPU, one on a GPU
shard_writer  one backbone's rows, from waiting pixels to committed shards
loop          the loop itself: one decode, any number of backbones
masters       its end: the digests are remembered, the masters written
on_ray        the same on Ray, in partitions, on many GPUs or machines
engine        fills what cache entries lack, by the loop or on Ray
"""
