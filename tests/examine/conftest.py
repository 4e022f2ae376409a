"""An examination makes hundreds of thousands of small calls: checking the shapes of each takes most of its time."""

from collections.abc import Iterator

import pytest

from tests.backends import without_shape_checks


@pytest.fixture(autouse=True, scope="package")
def fast() -> Iterator[None]:
    """Leave the shape checks out."""
    with without_shape_checks():
        yield
