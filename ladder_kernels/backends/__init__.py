"""The implementations of the step, one module or folder each, and their selection.

Nothing is imported here: the subfolders carry the names of the libraries they use, so an import in this
file would hide `torch` or `triton` from the rest of it.
"""
