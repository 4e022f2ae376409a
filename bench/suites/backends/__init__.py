"""Test of equivalence between the returns of PyTorch and JAX."""

from bench.core.suite import Suite

assert __doc__
SUITE = Suite(package=__name__, about=__doc__, section_order=20)
