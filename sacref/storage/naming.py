"""Dotted names of arrays: adding and removing prefixes, and comparing sets of arrays."""

from collections.abc import Mapping

from sacref.spec.arrays import NumpyArray


def under(arrays: Mapping[str, NumpyArray], prefix: str) -> dict[str, NumpyArray]:
    """Return the arrays whose names start with `prefix` and a dot, without it."""
    return {name.removeprefix(f"{prefix}."): array for name, array in arrays.items() if name.startswith(f"{prefix}.")}


def prefixed(prefix: str, arrays: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
    """Invert `under`."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def require_same_arrays(arrays: Mapping[str, NumpyArray], expected: Mapping[str, NumpyArray]) -> None:
    """Refuse arrays whose names or shapes are not the expected ones.

    Raises:
        ValueError: naming the first that differs.
    """
    missing, unknown = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
    if missing or unknown:
        raise ValueError(f"missing arrays {missing[:5]}, unknown arrays {unknown[:5]}: use the models and configuration it was saved with")
    for name, array in expected.items():
        if arrays[name].shape != array.shape or arrays[name].dtype.kind != array.dtype.kind:
            raise ValueError(
                f"{name} has shape {arrays[name].shape} and dtype {arrays[name].dtype}, expected {array.shape} and {array.dtype}: "
                f"use the models it was saved with"
            )
