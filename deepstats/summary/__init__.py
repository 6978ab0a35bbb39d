"""Printed pages, tables of several models, comparisons with other programs."""

from __future__ import annotations

from .coefficients import coefficient_table
from .compare import Comparison, compare
from .etable import Etable, choose_terms, etable
from .page import Block, Notes, Pairs, Summary, Table

__all__ = [
    "Block",
    "Comparison",
    "Etable",
    "Notes",
    "Pairs",
    "Summary",
    "Table",
    "choose_terms",
    "coefficient_table",
    "compare",
    "etable",
]
