"""Which SAC is this? Holds other people's implementations against a NumPy oracle with named choices and mistakes. DESIGN section 4.

`examine(adapter)` drives an implementation through an `Adapter` and gives an `Examination`: what it does choice by choice, which mistakes
it makes, and what could not be checked. docs/examine.md says how to write an adapter.
"""

from sacref.examine.adapter import Adapter, AdapterError
from sacref.examine.choices import Choices
from sacref.examine.examination import Examination, examine
from sacref.examine.problem import Problem
from sacref.examine.report import markdown, record, table

__all__ = ["Adapter", "AdapterError", "Choices", "Examination", "Problem", "examine", "markdown", "record", "table"]
