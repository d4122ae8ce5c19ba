"""Checkpoints on disk or in an object store: saved whole or not at all, checked byte by byte when they are loaded.

    <folder>/step-0000001234/checkpoint.json              the commit file: what belongs to it; without it nothing counts
                             tensors.<attempt>.json       where every piece of every tensor lies, with checksums
                             state.<attempt>.json         small state, of all and of each rank
                             rank-00000.<attempt>.safetensors   one a rank
    <folder>/.step-0000001300.partial-<attempt>/          being written, or left by a run that died

Knows nothing of trainer or model: tensors by name and small state go in and come out. `store.py` is the way in. One
program writes a folder at a time; all its ranks see the same folder.
"""
