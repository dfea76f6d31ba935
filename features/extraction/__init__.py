"""Extraction: images are read, decoded, sent through frozen networks and committed as shards, all at once.

job           what an extraction is asked for, and what came of it
prefetch      threads that read, digest and decode images a little ahead of the network
processes     the same by processes, which a GPU on many cores is fed by
forward       the frozen network, batch by batch (onednn: on a CPU; cuda_graph: on a GPU)
workers       the threads that run the networks: one per core on a CPU, one on a GPU
shard_writer  one entry's rows, from waiting pixels to committed shards; the masters at the end
loop          one decode, any number of backbones
on_ray        the same on Ray, by ranges of images, on many GPUs or machines
engine        fills what cache entries lack, by the loop or on Ray, and says how it went
"""
