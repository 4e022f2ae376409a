"""The dynamic loss scale: halved after an overflow, doubled after long enough without one."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sacref.spec.scaling import GROWTH_INTERVAL, INITIAL_SCALE, LARGEST_SCALE, next_scale

if TYPE_CHECKING:
    from tests.conftest import Backend


def after(xp: "Backend", scale: float, good_steps: int, overflow: bool) -> tuple[float, int]:
    def array(value: Any, dtype: Any) -> Any:
        return xp.module.asarray(np.asarray(value, dtype))

    following, counted = next_scale(xp.asarray(scale), array(good_steps, np.int32), array(overflow, bool))
    assert following.dtype == xp.asarray(scale).dtype and following.shape == counted.shape == ()
    return float(xp.numpy(following)), int(counted)


@pytest.mark.parametrize(
    ("before", "overflow", "wanted"),
    [
        ((1024.0, 5), False, (1024.0, 6)),
        ((1024.0, 5), True, (512.0, 0)),
        ((1024.0, GROWTH_INTERVAL - 2), False, (1024.0, GROWTH_INTERVAL - 1)),
        ((1024.0, GROWTH_INTERVAL - 1), False, (2048.0, 0)),
        ((1024.0, GROWTH_INTERVAL + 7), False, (2048.0, 0)),
        ((1024.0, GROWTH_INTERVAL - 1), True, (512.0, 0)),
        ((1.0, 3), True, (1.0, 0)),
        ((LARGEST_SCALE, GROWTH_INTERVAL - 1), False, (LARGEST_SCALE, 0)),
    ],
)
def test_by_hand(xp: "Backend", before: tuple[float, int], overflow: bool, wanted: tuple[float, int]) -> None:
    assert after(xp, *before, overflow) == wanted


def test_the_bounds_are_those_of_float16() -> None:
    """65536 at first, as torch.amp.GradScaler; at most 2^24; and 2,000 steps until it doubles."""
    assert (INITIAL_SCALE, LARGEST_SCALE, GROWTH_INTERVAL) == (65_536.0, 16_777_216.0, 2_000)
