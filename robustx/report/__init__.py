"""Report: one page that shows how robust models are and why, from the files of a run alone. See :func:`write`."""

from .page import render, write

__all__ = ["render", "write"]
