"""A second reader of the format, written from docs/internals/format.md alone.

Shares no code with the engine; `check.py` is the way in. Its layers, each above the next: check;
history; holders, replay, lineage, table, maps; slots, trees; log; scan; footer, nodes, objects;
files, structures; report, checksums.
"""
