"""What lies where, how large it is, and what of it may go (`ptb clean`, the disk line of `ptb show`; docs/disk.md)."""

from posttrainbench.disk.finding import DEFAULT, KINDS, Item, Kept, Search, find
from posttrainbench.disk.removing import remove
from posttrainbench.disk.sizes import Size, measure, parts_of_run, size_text

__all__ = [
    "DEFAULT",
    "KINDS",
    "Item",
    "Kept",
    "Search",
    "Size",
    "find",
    "measure",
    "parts_of_run",
    "remove",
    "size_text",
]
