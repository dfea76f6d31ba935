"""The HDF5 store: one entry per data set, backbone and recipe; immutable shards and one master over them.

key      what changes the numbers, and the words for how two keys differ
digests  the digest of every image's bytes, remembered by size and times
shards   immutable files of rows, named by their own content, with a checksum per block of rows
master   `features.h5`: which image is which row, and virtual datasets over the shards
entry    the folder: its state in words, reading, refreshing
claims   which process is at work on which images
verify   proof that every byte is as it was written
changes  how a data set differs from what the master says of it
gc       what nobody needs any more
usage    when an entry was last used
pack     one entry in one self-contained file (sparse: how it is written without HDF5 touching the disk)
"""

from features.cache.content import Digests
from features.cache.entry import Entry, State, entries, open_entry
from features.cache.key import Key

__all__ = ["Digests", "Entry", "Key", "State", "entries", "open_entry"]
