"""The feature cache in HDF5: one entry per data set and key; immutable shards and one master over them.

key      what changes the numbers, and the words for how two keys differ
content  the sha256 of every image's bytes, remembered by size and times
shard    immutable files of rows, named by their own content, with a checksum per block of rows
reader   the reader of shards: rows of arrays by any index
index    the master `features.h5`: which image is which row, and virtual datasets over the shards
entry    the folder of a key: its state in words, refreshing, how a data set differs from what its master says
lease    which process is at work on which partition of the images
verify   every byte of an entry against its seal
gc       files that no data set uses any more, and their removal
pack     one entry in one self-contained file
sealed   HDF5 files built in memory, with a digest over all their bytes
"""

from features.cache.content import Digests
from features.cache.entry import Entry, State, entries, open_entry
from features.cache.key import Key

__all__ = ["Digests", "Entry", "Key", "State", "entries", "open_entry"]
