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
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from sacref.spec.arrays import NumpyArray

JsonObject: TypeAlias = dict[str, Any]
Arrays: TypeAlias = Mapping[str, NumpyArray]

FORMAT = "sacref-checkpoint"
VERSION = 2
MANIFEST = "checkpoint.json"
LARGEST_JSON = 16 * 2**20
"""Bytes; a larger JSON file is neither written nor read. Parsed, it takes up to some twenty times as much memory."""
DEEPEST_JSON = 100
"""Lists and objects within each other; a deeper file is neither written nor read, as a walk of it would run out of stack."""

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
"""NumPy's name of a dtype that a checkpoint holds -> its name in a safetensors header."""

short: reprlib.Repr = reprlib.Repr()
"""Shortens values that a stranger may have written, for a message."""
short.maxstring = short.maxother = short.maxlong = 160
_GROUP = re.compile(r"[A-Za-z0-9_]{1,100}")
_ENTRY = {"size": int, "crc32": int, "arrays": dict}
_SEAL = re.compile(rb',\n "crc32": (0|[1-9][0-9]{0,9})\n}\n\Z')
"""How `checkpoint.json` ends."""
_CHECKSUM = "its content does not have the checksum it was written with"
_LENGTH = 8
"""Bytes at the beginning of a safetensors file that say how long its header is."""
_READ_BLOCK = 2**20


def one_line(said: object) -> str:
    """Shorten what a library says about a stranger's file to a line for a message."""
    text = " ".join(str(said).split()).encode(errors="backslashreplace").decode()
    return text if len(text) <= 500 else f"{text[:500]}..."


class CheckpointError(ValueError):
    """A checkpoint or JSON file that cannot be written or read; the message says which file, what is wrong, and the fix."""


class Checkpoint(NamedTuple):
    """The content of a checkpoint."""

    groups: dict[str, dict[str, NumpyArray]]
    """Group -> array's name -> array, each writable and independent of the file."""
    metadata: JsonObject


def write(path: str | os.PathLike[str], groups: Mapping[str, Arrays], metadata: Mapping[str, object]) -> str:
    """Write a checkpoint directory in one step: whoever reads `path`, at any time, finds the old checkpoint or the new one.

    Everything goes to a temporary sibling, is forced to the disk, and is then renamed.

    Args:
        path: the directory: new, empty, or an older checkpoint, which is replaced.
        groups: group (letters, digits, underscores) -> array's name -> array of a dtype in `DTYPES`. NaN and infinity are data.
        metadata: JSON, without NaN and infinity.

    Returns:
        The checkpoint's `token`.

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
    return _token(manifest)


def token(path: str | os.PathLike[str]) -> str:
    """Return the checksum of all that a checkpoint holds, which tells it from others.

    Raises:
        CheckpointError: if its `checkpoint.json` is missing or damaged; the other files are not read.
    """
    return _token(_read_manifest(_present(Path(path))))


def _token(manifest: JsonObject) -> str:
    return f"{manifest['crc32']:08x}"


def read(
    path: str | os.PathLike[str],
    *,
    without: Collection[str] = (),
    only: Collection[str] | None = None,
    token: str | None = None,
    check: Callable[[Checkpoint], None] | None = None,
    wanted: Callable[[str, str], bool] | None = None,
) -> Checkpoint:
    """Read a checkpoint directory, and check every file of it against the table in `checkpoint.json`.

    Args:
        path: the directory.
        without: groups that are not read. only: groups that are read if they are there; None for all.
        token: of the expected checkpoint; None for any.
        check: called before any array is read, with stand-ins of their dtypes and shapes, all zeros, which take no memory: to refuse a
            useless checkpoint, however large.
        wanted: (group, array's name) -> whether the array is kept. The others take no memory, only their bytes are checked. None for all.

    Raises:
        CheckpointError: if a file is missing, truncated, damaged, foreign or hostile, or the checkpoint is another one.
    """
    path = _present(Path(path))
    manifest = _read_manifest(path)
    if token is not None and _token(manifest) != token:
        raise CheckpointError(f"{path} is another checkpoint than the one that is meant: use the checkpoint before")
    expected = {
        name: _declared(path, name, entry)
        for name, entry in manifest["groups"].items()
        if name not in without and (only is None or name in only)
    }
    kept = {name: {key: array for key, array in arrays.items() if wanted is None or wanted(name, key)} for name, arrays in expected.items()}
    if check is not None:
        check(Checkpoint(kept, manifest["metadata"]))
    groups = {name: _read_group(path, name, manifest["groups"][name], arrays, kept[name]) for name, arrays in expected.items()}
    return Checkpoint(groups, manifest["metadata"])


def declared(path: str | os.PathLike[str]) -> Checkpoint:
    """Return what `read` would, with the stand-ins that its `check` sees.

    Raises:
        CheckpointError: if `checkpoint.json` is missing or damaged; the other files are not read.
    """
    path = _present(Path(path))
    manifest = _read_manifest(path)
    return Checkpoint({name: _declared(path, name, entry) for name, entry in manifest["groups"].items()}, manifest["metadata"])


def verify(path: str | os.PathLike[str]) -> str:
    """Check every file of a checkpoint against its checksum, without keeping it in memory.

    Returns:
        Its `token`.

    Raises:
        CheckpointError: if a file is missing or damaged.
    """
    path = _present(Path(path))
    manifest = _read_manifest(path)
    for name, entry in manifest["groups"].items():
        _declared(path, name, entry)
        file = path / f"{name}.safetensors"
        with _opened(file, entry) as stream:
            _require_checksum(file, _crc32(stream), entry)
    return _token(manifest)


def drop_group(path: str | os.PathLike[str], group: str) -> None:
    """Delete one group of a checkpoint, if it is there.

    Raises:
        CheckpointError: if `path` is no checkpoint.
    """
    path = _present(Path(path))
    manifest = _read_manifest(path)
    if manifest["groups"].pop(group, None) is not None:
        write_json(path / MANIFEST, _sealed(manifest, path / MANIFEST))
        (path / f"{group}.safetensors").unlink(missing_ok=True)


def foreign(path: str | os.PathLike[str]) -> str | None:
    """Return the name of a file in a checkpoint's directory that `write` does not write, or its own if it is no directory; else None."""
    path = Path(path)
    if path.is_symlink() or not path.is_dir():
        return path.name
    return next((entry.name for entry in sorted(path.iterdir()) if not _is_own(entry.name) or entry.is_dir()), None)


def holds_only_foreign(path: str | os.PathLike[str]) -> bool:
    """Return whether there are files in a checkpoint's directory, and `write` wrote none of them; True where it is gone meanwhile."""
    try:
        names = [entry.name for entry in Path(path).iterdir()]
    except FileNotFoundError:  # another rank deletes its parts at the same time
        return True
    return bool(names) and not any(map(_is_own, names))


def remove(path: str | os.PathLike[str]) -> None:
    """Delete a checkpoint's own files, and then its directory if that is empty. Files that cannot be deleted stay."""
    path = Path(path)
    if path.is_symlink() or not path.is_dir():
        return
    for entry in list(path.iterdir()):
        if _is_own(entry.name):
            with suppress(OSError):
                entry.unlink()
    with suppress(OSError):
        path.rmdir()


def write_json(path: str | os.PathLike[str], value: object) -> None:
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
        CheckpointError: if the file is missing, too large, too deep, or not strict JSON: NaN, infinity and a key that comes twice are
            refused.
    """
    return _read_json(Path(path))[0]


# Writing.


def _write_group(file: Path, name: str, arrays: Arrays) -> JsonObject:
    """Write the file of one group; return its entry in the manifest."""
    if not isinstance(name, str) or not _GROUP.fullmatch(name):
        raise CheckpointError(f"group name {name!r} cannot be written, expected letters, digits and underscores: rename the group")
    plain = {key: _writable(name, key, array) for key, array in arrays.items()}
    try:
        save_file(plain, file)
    except (SafetensorError, UnicodeError) as error:
        raise CheckpointError(f"group {name!r} cannot be written ({error}): check its names and the free space") from error
    _sync(file)
    with open(file, "rb") as stream:
        checksum = _crc32(stream)
    return {
        "size": file.stat().st_size,
        "crc32": checksum,
        "arrays": {key: {"dtype": array.dtype.name, "shape": list(array.shape)} for key, array in plain.items()},
    }


def _crc32(stream: BufferedReader, most: int | None = None, checksum: int = 0) -> int:
    """Continue `checksum` over the next `most` bytes; None for all that follow."""
    left = math.inf if most is None else most
    while block := stream.read(int(min(left, _READ_BLOCK))):
        checksum = zlib.crc32(block, checksum)
        left -= len(block)
    return checksum


def _writable(group: str, key: str, array: NumpyArray) -> NumpyArray:
    """Make an array contiguous: safetensors writes the raw buffer, and would scramble a transposed or strided one in silence."""
    if not isinstance(key, str) or key in ("", "__metadata__"):
        raise CheckpointError(f"{group}: array name {key!r} cannot be written, expected a string that is not empty or reserved: rename it")
    array = np.asarray(array)
    if array.dtype.name not in DTYPES:
        raise CheckpointError(f"{group}/{key} has dtype {array.dtype}, expected one of {', '.join(DTYPES)}: cast it before it is saved")
    return np.asarray(array, order="C")


def _encode(path: Path, value: object) -> bytes:
    try:
        text = (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be written ({error}): pass finite numbers, strings, lists and dicts") from error
    if len(text) > LARGEST_JSON or _depth(value) > DEEPEST_JSON:
        raise CheckpointError(
            f"{path} cannot be written: {len(text)} bytes, {_depth(value)} deep, expected at most {LARGEST_JSON} and {DEEPEST_JSON}, or "
            f"nothing would read it again: pass less, and large numbers of numbers as arrays"
        )
    return text


def _sealed(manifest: JsonObject, path: Path) -> JsonObject:
    """Add the checksum of the manifest's text without it."""
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
    """Return the path of the old checkpoint between the two renames of a replacement."""
    return path.with_name(f".{path.name}.old")


def _present(path: Path) -> Path:
    """Return the path, or that of the old checkpoint where a replacement was cut off between its two renames."""
    return _backup(path) if not path.exists() and _backup(path).is_dir() else path


def _put_in_place(temporary: Path, path: Path) -> None:
    backup = _backup(path)
    replaces = path.exists()
    if replaces:
        # No system call that Python offers swaps two directories, so the old one is moved aside first, to where `_present` looks.
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
    other = [name for name in names if not _is_own(name)]
    if other or (names and MANIFEST not in names):
        example = (other or names)[0]
        raise CheckpointError(f"{path} holds {example!r}, which would be lost with the checkpoint replaced: choose a path of its own")


def _is_own(name: str) -> bool:
    return name == MANIFEST or name.endswith(".safetensors") or _is_temporary_of(MANIFEST, name)


def _is_temporary_of(name: str, candidate: str) -> bool:
    return re.fullmatch(rf"\.{re.escape(name)}\.[0-9a-f]{{16}}\.tmp", candidate) is not None


def _remove_leftovers(path: Path) -> None:
    """Delete temporary files of earlier writes that were killed."""
    for entry in list(path.parent.iterdir()):
        if _is_temporary_of(path.name, entry.name):
            shutil.rmtree(entry, ignore_errors=True)


# Reading.


def _read_manifest(path: Path) -> JsonObject:
    """Read `checkpoint.json`, and check the type of every field."""
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file, and a checkpoint is a directory with {MANIFEST} in it: pass the directory that `save` wrote"
        )
    file = path / MANIFEST
    manifest, text = _read_json(file)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{file} does not say format {FORMAT!r}: pass a checkpoint that sacref wrote")
    if type(manifest.get("version")) is not int or manifest["version"] != VERSION:
        raise CheckpointError(
            f"{file} has version {short.repr(manifest.get('version'))}, expected {VERSION}: load it with the sacref that wrote it"
        )
    # The checksum of the text, not of its meaning, guards every byte.
    seal = _SEAL.search(text)
    if seal is None or zlib.crc32(text[: seal.start()] + b"\n}\n") != int(seal[1]) or manifest.get("crc32") != int(seal[1]):
        raise _damaged(file, _CHECKSUM)
    if manifest.keys() != {"format", "version", "metadata", "groups", "crc32"}:
        raise _damaged(file, f"it holds {short.repr(sorted(manifest))}, expected format, version, metadata, groups and crc32")
    for field in ("metadata", "groups"):
        if not isinstance(manifest.get(field), dict):
            raise _damaged(file, f"{field} is {short.repr(manifest.get(field))}, expected an object")
    for name, entry in manifest["groups"].items():
        if not _GROUP.fullmatch(name):
            raise _damaged(
                file, f"the group name {short.repr(name)} has other characters than letters, digits and underscores, or too many"
            )
        if not (isinstance(entry, dict) and {field: type(value) for field, value in entry.items()} == _ENTRY):
            raise _damaged(file, f"the entry of group {name!r} does not hold size, crc32 and arrays")
        for key, declared in entry["arrays"].items():
            if not (isinstance(declared, dict) and declared.get("dtype") in list(DTYPES) and _is_shape(declared.get("shape"))):
                raise _damaged(file, f"the array {short.repr(key)} of group {name!r} is {short.repr(declared)}, expected dtype and shape")
    return manifest


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _declared(path: Path, group: str, entry: JsonObject) -> dict[str, NumpyArray]:
    """Return stand-ins for a group's arrays; refuse shapes that NumPy cannot have, and a file of another size than theirs."""
    file = path / f"{group}.safetensors"
    with _refusing(file):
        arrays = {key: np.broadcast_to(np.zeros((), array["dtype"]), array["shape"]) for key, array in entry["arrays"].items()}
    header = entry["size"] - sum(array.nbytes for array in arrays.values()) - _LENGTH
    if not 2 <= header <= LARGEST_JSON:
        raise _damaged(file, f"it is said to have {short.repr(entry['size'])} bytes, and its arrays have others")
    return arrays


def _read_group(path: Path, name: str, entry: JsonObject, declared: Arrays, kept: Collection[str]) -> dict[str, NumpyArray]:
    """Read the arrays of one file that are kept; all of them must be those declared.

    The library would map the file into memory: if the file is cut short meanwhile, or its disk fails, the process dies of SIGBUS. Here the
    bytes that are checked are those that are returned, whatever happens to the file.
    """
    # The name is made from the group's, never read: no path in a stranger's JSON is followed.
    file = path / f"{name}.safetensors"
    with _opened(file, entry) as stream:
        length = stream.read(_LENGTH)
        size = int.from_bytes(length, "little")
        data = entry["size"] - _LENGTH - size
        if size > LARGEST_JSON or data < 0:
            raise _damaged(file, f"its header is said to have {size} bytes")
        header = stream.read(size)
        checksum = zlib.crc32(header, zlib.crc32(length))
        arrays = {}
        for key in _in_order(file, _parse(header), declared, data):
            if key not in kept:
                checksum = _crc32(stream, declared[key].nbytes, checksum)
                continue
            array = np.empty(declared[key].shape, declared[key].dtype.newbyteorder("<"))
            view = memoryview(array.reshape(-1).view(np.uint8).data)
            if stream.readinto(view) != array.nbytes:
                raise _damaged(file, "it became shorter while it was read")
            checksum = zlib.crc32(view, checksum)
            arrays[key] = _checked(file, key, array.astype(declared[key].dtype, copy=False))
        _require_checksum(file, checksum, entry)
        return arrays


def _in_order(file: Path, header: object, declared: Arrays, data: int) -> list[str]:
    """List the arrays of a header in the order of the file, where each must follow the one before, up to the end of the `data` bytes.

    The format: https://huggingface.co/docs/safetensors#format
    """
    if not isinstance(header, dict) or header.keys() != declared.keys():
        differing = sorted(header.keys() ^ declared.keys()) if isinstance(header, dict) else type(header).__name__
        raise _damaged(file, f"its arrays are not those of {MANIFEST}: {short.repr(differing)}")
    places = []
    for key, array in declared.items():
        expected = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape)}
        found = header[key]
        said = {name: value for name, value in found.items() if name != "data_offsets"} if isinstance(found, dict) else None
        if said != expected or not _is_shape(said["shape"]):
            raise _damaged(file, f"{short.repr(key)} is {short.repr(found)}, {MANIFEST} says {expected}")
        offsets = found.get("data_offsets")
        if not isinstance(offsets, list) or len(offsets) != 2 or any(type(offset) is not int for offset in offsets):
            raise _damaged(file, f"{short.repr(key)} lies at {short.repr(offsets)}, expected two integers")
        places.append((offsets[0], offsets[1], key))
    end = 0
    for begin, after, key in sorted(places):
        if begin != end or after - begin != declared[key].nbytes:
            raise _damaged(file, f"{short.repr(key)} lies at {short.repr([begin, after])}, which is not its place")
        end = after
    if end != data:
        raise _damaged(file, f"its arrays have {end} bytes, and {data} are there")
    return [key for _, _, key in sorted(places)]


def _require_checksum(file: Path, checksum: int, entry: JsonObject) -> None:
    if checksum != entry["crc32"]:
        raise _damaged(file, _CHECKSUM)


def _checked(file: Path, key: str, array: NumpyArray) -> NumpyArray:
    if array.dtype == bool and array.size and array.view(np.uint8).max() > 1:
        raise _damaged(file, f"{short.repr(key)} is bool and holds other bytes than 0 and 1")
    return array


@contextmanager
def _opened(file: Path, entry: JsonObject | None = None) -> Iterator[BufferedReader]:
    """Open a file of the size that its entry says. Others than ordinary files are refused unopened, as reading a pipe may never end."""
    with _refusing(file):
        _require_ordinary(file, file.stat())
        # Checked again when it is open, and opened without waiting: another file may have replaced it.
        with open(file, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as stream:
            size = _require_ordinary(file, os.fstat(stream.fileno()))
            if entry is not None and size != entry["size"]:
                raise _damaged(file, f"it has {size} bytes, expected {short.repr(entry['size'])}")
            yield stream


def _require_ordinary(file: Path, status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{file} is not an ordinary file: pass a checkpoint that sacref wrote")
    return status.st_size


def _read_json(file: Path) -> tuple[object, bytes]:
    """Return the content of a JSON file, and its text."""
    with _opened(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        text = stream.read(LARGEST_JSON + 1) if size <= LARGEST_JSON else b""
        if max(size, len(text)) > LARGEST_JSON:
            raise CheckpointError(f"{file} has {size} bytes, expected at most {LARGEST_JSON}: it is not a file that sacref wrote")
        return _parse(text), text


def _parse(text: bytes) -> object:
    value = json.loads(text.decode(), parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_duplicates)
    if _depth(value) > DEEPEST_JSON:
        raise ValueError(f"more than {DEEPEST_JSON} lists and objects within each other")
    return value


def _depth(value: object) -> int:
    """Count the lists and objects within each other."""
    depth, level = 0, [value]
    while level := [inner for inner in level if isinstance(inner, list | tuple | dict)]:
        depth += 1
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return depth


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
        raise _damaged(file, short.repr(str(error))) from error


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} is damaged or foreign, {what}: restore it from a copy, or use another checkpoint")


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large for a float")
    return number


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return found
