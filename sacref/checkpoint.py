"""Named NumPy arrays and JSON on disk: written whole or not at all, read with suspicion. Nothing here runs what it reads.

A checkpoint is a directory: one `<group>.safetensors` per group of arrays, and `checkpoint.json`, which holds the metadata and, for
each file, its size, its CRC-32 and the table of its arrays; last, the CRC-32 of all that it says itself.
"""

import json
import math
import os
import re
import reprlib
import secrets
import shutil
import stat
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FORMAT = "sacref-checkpoint"
VERSION = 2
MANIFEST = "checkpoint.json"
LARGEST_JSON = 64 * 2**20
"""Bytes; a larger JSON file is refused unread."""

DTYPES: Mapping[str, str] = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
"""NumPy's name of a type that a checkpoint holds -> its name in a safetensors header."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 160
_GROUP = re.compile(r"[A-Za-z0-9_]+")
_ENTRY = {"size": int, "crc32": int, "arrays": dict}
_READ_BLOCK = 2**20


class CheckpointError(ValueError):
    """A checkpoint or JSON file that cannot be written or read; the message says which file, what is wrong, and the fix."""


class Checkpoint(NamedTuple):
    """What `read` found."""

    groups: dict[str, dict[str, NDArray[Any]]]
    """Group -> array's name -> array, each writable and independent of the file."""
    metadata: dict[str, Any]


def write(path: str | os.PathLike[str], groups: Mapping[str, Mapping[str, NDArray[Any]]], metadata: Mapping[str, Any]) -> str:
    """Write a checkpoint directory in one step: whoever reads `path`, at any time, finds the old checkpoint or the new one.

    Everything goes to a temporary sibling, is forced to the disk, and is then renamed.

    Args:
        path: the directory: new, empty, or an older checkpoint, which is replaced.
        groups: group (letters, digits, underscores) -> array's name -> array of a type in `DTYPES`. NaN and infinity are data.
        metadata: what JSON can hold, without NaN and infinity.

    Returns:
        What `token` gives for the checkpoint.

    Raises:
        CheckpointError: if a name, an array or the metadata cannot be written, or `path` holds something else than a checkpoint.
    """
    path = Path(path).resolve()
    _refuse_other_content(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        table = {name: _write_group(temporary / f"{name}.safetensors", name, arrays) for name, arrays in groups.items()}
        manifest = _sealed({"format": FORMAT, "version": VERSION, "metadata": dict(metadata), "groups": table}, path / MANIFEST)
        _write_synced(temporary / MANIFEST, _encode(path / MANIFEST, manifest))
        for name in table:
            # safetensors makes its files private to the user; give them the mode that the umask gave the JSON.
            (temporary / f"{name}.safetensors").chmod(stat.S_IMODE((temporary / MANIFEST).stat().st_mode))
        _sync(temporary)
        _put_in_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return f"{manifest['crc32']:08x}"


def token(path: str | os.PathLike[str]) -> str:
    """What tells a checkpoint from others: the checksum of all that it holds.

    Raises:
        CheckpointError: if its `checkpoint.json` is missing or damaged; the other files are not read.
    """
    return f"{_read_manifest(_present(Path(path)))['crc32']:08x}"


def read(path: str | os.PathLike[str], *, without: Collection[str] = (), only: Collection[str] | None = None) -> Checkpoint:
    """Read a checkpoint directory, after checking every file of it against the table in `checkpoint.json`.

    Args:
        path: the directory.
        without: groups that are not read, to spare their time and memory. only: those that are read, of those that are there; None for all.

    Raises:
        CheckpointError: if a file is missing, truncated, damaged, foreign or hostile.
    """
    path = _present(Path(path))
    manifest = _read_manifest(path)
    wanted = [name for name in manifest["groups"] if name not in without and (only is None or name in only)]
    groups = {name: _read_group(path, name, manifest["groups"][name]) for name in wanted}
    return Checkpoint(groups, manifest["metadata"])


def expect(path: str | os.PathLike[str], groups: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]]) -> None:
    """Refuse a checkpoint of other arrays, before anything of their size is read.

    Args:
        path: the directory. groups: group -> array's name -> type and shape.

    Raises:
        CheckpointError: if it declares other groups, names, types or shapes; with the first that differs.
    """
    path = _present(Path(path))
    found = {
        group: {name: (array["dtype"], tuple(array["shape"])) for name, array in entry["arrays"].items()}
        for group, entry in _read_manifest(path)["groups"].items()
    }
    for group in found.keys() | groups.keys():
        here, there = found.get(group, {}), groups.get(group, {})
        for name in sorted(here.keys() | there.keys()):
            if here.get(name) != there.get(name):
                raise CheckpointError(
                    f"{path} holds {_short.repr(name)} of group {group!r} as {_short.repr(here.get(name))}, "
                    f"expected {there.get(name)}: use the checkpoint before"
                )


def verify(path: str | os.PathLike[str]) -> None:
    """Check every file of a checkpoint against its checksum; nothing is kept in memory.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """
    path = _present(Path(path))
    for name, entry in _read_manifest(path)["groups"].items():
        file = path / f"{name}.safetensors"
        with _refusing(file):
            _check_content(file, entry)


def drop_group(path: str | os.PathLike[str], group: str) -> None:
    """Take one group out of a checkpoint, to free its space; nothing happens where the group is not there.

    Raises:
        CheckpointError: if `path` is no checkpoint.
    """
    path = _present(Path(path))
    manifest = _read_manifest(path)
    if manifest["groups"].pop(group, None) is not None:
        write_json(path / MANIFEST, _sealed(manifest, path / MANIFEST))
        (path / f"{group}.safetensors").unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as JSON in one step: whoever reads `path` finds the old text or the new one.

    Raises:
        CheckpointError: if JSON cannot hold the value: NaN, infinity, arrays, cycles.
    """
    path = Path(path)
    text = _encode(path, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        _write_synced(temporary, text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: if the file is missing, too large, or not strict JSON: NaN, infinity and a key that comes twice are refused.
    """
    path = Path(path)
    with _refusing(path):
        size = _size_of(path)
        if size > LARGEST_JSON:
            raise CheckpointError(f"{path} has {size} bytes, expected at most {LARGEST_JSON}: it is not a file that sacref wrote")
        return json.loads(path.read_bytes(), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_duplicates)


# Writing.


def _write_group(file: Path, name: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Write the file of one group; returns its entry in the manifest."""
    if not isinstance(name, str) or not _GROUP.fullmatch(name):
        raise CheckpointError(f"group name {name!r} cannot be written, expected letters, digits and underscores: rename the group")
    plain = {key: _writable(name, key, array) for key, array in arrays.items()}
    try:
        save_file(plain, file)
    except (SafetensorError, UnicodeError) as error:
        raise CheckpointError(f"group {name!r} cannot be written ({error}): check its names and the free space") from error
    _sync(file)
    return {
        "size": file.stat().st_size,
        "crc32": _crc32(file),
        "arrays": {key: {"dtype": array.dtype.name, "shape": list(array.shape)} for key, array in plain.items()},
    }


def _writable(group: str, key: str, array: NDArray[Any]) -> NDArray[Any]:
    """The array as safetensors needs it: it writes the raw buffer, and would scramble a transposed or strided one in silence."""
    if not isinstance(key, str) or key in ("", "__metadata__"):
        raise CheckpointError(f"{group}: array name {key!r} cannot be written, expected a string that is not empty or reserved: rename it")
    array = np.asarray(array)
    if array.dtype.name not in DTYPES:
        raise CheckpointError(f"{group}/{key} has dtype {array.dtype}, expected one of {', '.join(DTYPES)}: cast it before it is saved")
    return np.asarray(array, order="C")


def _encode(path: Path, value: Any) -> bytes:
    try:
        return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be written ({error}): pass finite numbers, strings, lists and dicts") from error


def _sealed(manifest: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The manifest with its own checksum."""
    said = {name: value for name, value in manifest.items() if name != "crc32"}
    return {**said, "crc32": zlib.crc32(_encode(path, said))}


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(path: Path) -> None:
    """Force a file's content, or a directory's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _backup(path: Path) -> Path:
    """Where the old checkpoint waits between the two renames of a replacement."""
    return path.with_name(f".{path.name}.old")


def _present(path: Path) -> Path:
    """The checkpoint itself, or the old one where a replacement was cut off between its two renames."""
    return _backup(path) if not path.exists() and _backup(path).is_dir() else path


def _put_in_place(temporary: Path, path: Path) -> None:
    backup = _backup(path)
    replaces = path.exists()
    if replaces:
        # No system call that Python offers swaps two directories, so the old one steps aside first; `_present` knows where.
        shutil.rmtree(backup, ignore_errors=True)
        os.replace(path, backup)
    try:
        os.replace(temporary, path)
    except BaseException:
        if replaces:
            os.replace(backup, path)
        raise
    _sync(path.parent)
    shutil.rmtree(backup, ignore_errors=True)


def _refuse_other_content(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file, and a checkpoint is a directory: choose another path")
    names = [entry.name for entry in path.iterdir()] if path.exists() else []
    other = [name for name in names if not (name == MANIFEST or name.endswith(".safetensors") or _is_temporary_of(MANIFEST, name))]
    if other or (names and MANIFEST not in names):
        example = (other or names)[0]
        raise CheckpointError(f"{path} holds {example!r}, which would be lost with the checkpoint replaced: choose a path of its own")


def _is_temporary_of(name: str, candidate: str) -> bool:
    return re.fullmatch(rf"\.{re.escape(name)}\.[0-9a-f]{{16}}\.tmp", candidate) is not None


def _remove_leftovers(path: Path) -> None:
    """Free the space of earlier writings of this checkpoint that were killed."""
    for entry in list(path.parent.iterdir()):
        if _is_temporary_of(path.name, entry.name):
            shutil.rmtree(entry, ignore_errors=True)


# Reading.


def _read_manifest(path: Path) -> dict[str, Any]:
    """`checkpoint.json`, with every field of the type that it must have."""
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file, and a checkpoint is a directory with {MANIFEST} in it: pass the directory that `save` wrote"
        )
    file = path / MANIFEST
    manifest = read_json(file)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{file} does not say format {FORMAT!r}: pass a checkpoint that sacref wrote")
    if type(manifest.get("version")) is not int or manifest["version"] != VERSION:
        raise CheckpointError(
            f"{file} has version {_short.repr(manifest.get('version'))}, expected {VERSION}: load it with the sacref that wrote it"
        )
    with _refusing(file):
        sealed = _sealed(manifest, file)
    if type(manifest.get("crc32")) is not int or manifest != sealed:
        raise _damaged(file, "its content does not have the checksum it was written with")
    if manifest.keys() != {"format", "version", "metadata", "groups", "crc32"}:
        raise _damaged(file, f"it holds {_short.repr(sorted(manifest))}, expected format, version, metadata, groups and crc32")
    for field in ("metadata", "groups"):
        if not isinstance(manifest.get(field), dict):
            raise _damaged(file, f"{field} is {_short.repr(manifest.get(field))}, expected an object")
    for name, entry in manifest["groups"].items():
        if not _GROUP.fullmatch(name):
            raise _damaged(file, f"the group name {_short.repr(name)} has other characters than letters, digits and underscores")
        if not (isinstance(entry, dict) and {field: type(value) for field, value in entry.items()} == _ENTRY):
            raise _damaged(file, f"the entry of group {name!r} does not hold size, crc32 and arrays")
        for key, declared in entry["arrays"].items():
            if not (isinstance(declared, dict) and declared.get("dtype") in list(DTYPES) and _is_shape(declared.get("shape"))):
                raise _damaged(file, f"the array {_short.repr(key)} of group {name!r} is {_short.repr(declared)}, expected dtype and shape")
    return manifest


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _read_group(path: Path, name: str, entry: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The arrays of one file, whose entry in the manifest they must fit; nothing is allocated before they do."""
    # The name is made from the group's, never read: no path in a stranger's JSON is followed.
    file = path / f"{name}.safetensors"
    with _refusing(file):
        _check_content(file, entry)
        with safe_open(file, framework="numpy") as stored:
            names = list(stored.keys())
            if set(names) != set(entry["arrays"]):
                differing = sorted(set(names) ^ set(entry["arrays"]))
                raise _damaged(file, f"its arrays are not those of {MANIFEST}: {_short.repr(differing)}")
            for key in names:
                declared, found = entry["arrays"][key], stored.get_slice(key)
                if found.get_dtype() != DTYPES[declared["dtype"]] or list(found.get_shape()) != declared["shape"]:
                    raise _damaged(
                        file, f"{_short.repr(key)} is {found.get_dtype()} {found.get_shape()}, {MANIFEST} says {_short.repr(declared)}"
                    )
            return {key: _sound(file, key, stored.get_tensor(key)) for key in names}


def _check_content(file: Path, entry: Mapping[str, Any]) -> None:
    size = _size_of(file)
    if size != entry["size"]:
        raise _damaged(file, f"it has {size} bytes, expected {_short.repr(entry['size'])}")
    if _crc32(file) != entry["crc32"]:
        raise _damaged(file, "its content does not have the checksum it was written with")


def _sound(file: Path, key: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == bool and array.size and array.view(np.uint8).max() > 1:
        raise _damaged(file, f"{_short.repr(key)} is bool and holds other bytes than 0 and 1")
    return array


def _size_of(file: Path) -> int:
    """Bytes of an ordinary file. Anything else is refused before it is opened, as reading a pipe may never end."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{file} is not an ordinary file: pass a checkpoint that sacref wrote")
    return status.st_size


def _crc32(file: Path) -> int:
    checksum = 0
    with open(file, "rb") as stream:
        while block := stream.read(_READ_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum


@contextmanager
def _refusing(file: Path) -> Iterator[None]:
    """Turn whatever the libraries raise about a bad file into one `CheckpointError` that names it."""
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist: pass a whole checkpoint, or restore the file from a copy") from error
    except (OSError, SafetensorError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise _damaged(file, _short.repr(str(error))) from error


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} is damaged or foreign, {what}: restore it from a copy, or use another checkpoint")


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large for a float")
    return number


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return found
