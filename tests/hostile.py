"""What a stranger may put into a file, and what loading it may do: give what was written, or one clear error."""

import contextlib
import copy
import json
import os
import pickle
import random
import re
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

CASES = int(os.environ.get("SACREF_FUZZ", "0"))
"""Random cases beyond those of every run; they are spread over the tests that draw some."""
TOO_LONG = 10.0
"""Seconds of the processor that one case may take, on the slowest machine."""
LONGEST_MESSAGE = 2000

Place: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True)
class Raw:
    """Text that stands in JSON as it is."""

    text: str


def nested(depth: int, kind: type = list) -> Any:
    value: Any = kind()
    for _ in range(depth - 1):
        value = [value] if kind is list else {"a": value}
    return value


MARK = "mark-of-a-file-that-was-run"
CODE = f"__import__('os').mkdir({MARK!r})"
NASTY: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 10**4000),
    *(0.0, -0.0, 0.5, 1.0, -1.5, 1e-320, 1e308, -1e308),
    *("", "a", "0", "1", "nan", "inf", "float32", "float64", "bool", "object", "F64", "torch", "jax", "SAC", "array"),
    *(
        "../x",
        "../../../../../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "a\0b",
        "a\nb",
        "\ud800",
        "\u202e",
        "x" * 5000,
        "C:x",
        "%s%n",
        "{0}",
    ),
    *(CODE, f"!!python/object/apply:os.mkdir [{MARK}]", f"os:mkdir:{MARK}", "antigravity:geohash"),
    *([], {}, [None], [[]], [0], [1], [-1], [2**62], [2**32, 2**32], [0, 2**62, 2**62], [1] * 100, [0.5], ["x"], [True], [[1], [1, 2]]),
    *({"": 0}, {"..": {}}, {"is": "array", "of": "x"}, {"is": "array", "of": ["x"]}, {"is": "scalar", "of": "x"}, {"is": "dict", "of": {}}),
    *({"is": "integer", "of": "1" * 5000}, {"is": "integer", "of": "-7"}, {"is": "float", "of": "nan"}, {"is": "float", "of": "1e999"}),
    *({"is": "tuple", "of": []}, {"is": "object", "of": "os"}, {"is": CODE, "of": CODE}, {"dtype": "float64", "shape": [2**40]}),
    *(nested(60), nested(99), nested(101), nested(500), nested(60, dict), nested(101, dict)),
    *(
        Raw("NaN"),
        Raw("Infinity"),
        Raw("-Infinity"),
        Raw("1e999"),
        Raw("-1e999"),
        Raw("1" * 5000),
        Raw("[" * 100_000),
        Raw('{"a":' * 50_000),
    ),
    *(
        Raw('{"a": 1, "a": 2}'),
        Raw('{"is": "float", "of": "1", "of": "2"}'),
        Raw(""),
        Raw("'x'"),
        Raw("nul"),
        Raw("01"),
        Raw("+1"),
        Raw("0x1"),
    ),
    *(
        Raw("1,"),
        Raw('"\\u12"'),
        Raw('"\\x41"'),
        Raw("// x"),
        Raw("\ufeff1"),
        Raw('"a\tb"'),
        Raw("\0"),
        Raw(".5"),
        Raw("None"),
        Raw("True"),
    ),
]
"""Values, each of which may stand in the place of any other."""
NAMES = [
    "",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\0b",
    "a\nb",
    "x" * 300,
    "__metadata__",
    "agent\n",
    "crc32",
    "is",
    "\ud800",
    "__class__",
    "0",
]
"""Keys, each of which may take the place of any other."""


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Of everything in a JSON value, itself included."""
    yield at
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*at, key))


def within(value: Any, at: Place) -> Any:
    for key in at:
        value = value[key]
    return value


def replaced(value: Any, at: Place, new: Any) -> Any:
    """A copy with something else in one place."""
    if not at:
        return new
    changed = copy.deepcopy(value)
    within(changed, at[:-1])[at[-1]] = new
    return changed


def renamed(value: Any, at: Place, name: str | None) -> Any:
    """A copy in which a key has another name; None leaves it out, with what it is the key of. The order stays."""
    *parent, last = at
    outer = within(value, tuple(parent))
    if isinstance(outer, list):
        new: Any = [inner for number, inner in enumerate(outer) if number != last]
    else:
        new = {(name if key == last else key): inner for key, inner in outer.items() if not (name is None and key == last)}
    return replaced(value, tuple(parent), new)


def mutants(value: Any) -> Iterator[tuple[str, Any]]:
    """All values that differ from a JSON value in one place: each part replaced by each of `NASTY`, left out, renamed."""
    for at in places(value):
        for new in NASTY:
            if new != within(value, at) or type(new) is not type(within(value, at)):
                yield f"{at} = {str(new)[:60]}", replaced(value, at, new)
        if at:
            yield f"{at} left out", renamed(value, at, None)
        if at and isinstance(at[-1], str):
            for name in NAMES:
                yield f"{at} called {name!r:.40}", renamed(value, at, name)


def some_mutants(value: Any, count: int, source: random.Random) -> Iterator[tuple[str, Any]]:
    """So many of them, drawn one by one, or of two of them at once."""
    where = list(places(value))
    for _ in range(count):
        changed, said = value, []
        for _ in range(source.choice([1, 1, 1, 2])):
            at = source.choice(where)
            with contextlib.suppress(LookupError, TypeError, AttributeError, RecursionError):  # the first one took the second's place away
                if at and source.random() < 0.15:
                    name = source.choice([None, *NAMES])
                    changed = renamed(changed, at, name)
                    said.append(f"{at} called {name!r:.40}")
                else:
                    new = source.choice(NASTY)
                    changed = replaced(changed, at, new)
                    said.append(f"{at} = {str(new)[:60]}")
        yield ", ".join(said), changed


def is_plain(value: Any) -> bool:
    """Whether it could have come out of a file at all."""
    depth, level = 0, [value]
    while level:
        if depth > 100 or any(isinstance(inner, Raw) for inner in level):
            return False
        inside = [inner for inner in level if isinstance(inner, list | dict)]
        level = [inner for outer in inside for inner in (outer.values() if isinstance(outer, dict) else outer)]
        depth += 1
    return True


def text_of(value: Any) -> bytes:
    """JSON with what is `Raw`, as sacref writes it."""
    raws: list[str] = []

    def token(inner: Any) -> Any:
        if isinstance(inner, Raw):
            raws.append(inner.text)
            return f"<raw {len(raws) - 1}>"
        if isinstance(inner, dict):
            return {key: token(branch) for key, branch in inner.items()}
        return [token(branch) for branch in inner] if isinstance(inner, list) else inner

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        text = json.dumps(token(value), indent=1) + "\n"
    finally:
        sys.setrecursionlimit(limit)
    for number, raw in enumerate(raws):
        text = text.replace(f'"<raw {number}>"', raw)
    return text.encode("utf-8", "surrogatepass")


def sealed(manifest: Any) -> bytes:
    """`checkpoint.json` with the checksum that it must have, as a hostile writer would give it."""
    if not isinstance(manifest, dict):
        return text_of(manifest)
    said = text_of({name: value for name, value in manifest.items() if name != "crc32"})
    return said[:-3] + f',\n "crc32": {zlib.crc32(said)}\n}}\n'.encode()


def trusting(manifest: dict[str, Any], group: str, content: bytes) -> bytes:
    """`checkpoint.json` with the size and checksum of a group's file as it is now."""
    entry = {**manifest["groups"][group], "size": len(content), "crc32": zlib.crc32(content)}
    return sealed({**manifest, "groups": {**manifest["groups"], group: entry}})


def header_of(content: bytes) -> tuple[Any, bytes]:
    """The header of a safetensors file, and its arrays."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: bytes, data: bytes = b"", claimed: int | None = None) -> bytes:
    """A safetensors file with this header, which may lie about its length."""
    return struct.pack("<Q", len(header) if claimed is None else claimed) + header + data


def damaged(content: bytes, other: bytes, source: random.Random) -> bytes:
    """Random damage: bits, spans, pieces of another file."""
    changed = bytearray(content)
    begin = source.randrange(len(content) + 1)
    end = min(len(content), begin + source.choice([1, 2, 4, 8, 64, 4096]))
    kind = source.randrange(8)
    if kind == 0:
        for bit in source.sample(range(8 * len(content)), source.choice([1, 2, 3, 16])):
            changed[bit // 8] ^= 1 << bit % 8
    elif kind == 1:
        changed[begin:end] = source.randbytes(end - begin)
    elif kind == 2:
        changed[begin:begin] = source.randbytes(end - begin + 1)
    elif kind == 3:
        del changed[begin : max(end, begin + 1)]
    elif kind == 4:
        changed[begin:end] = bytes([source.choice([0, 0xFF, 0x20])]) * (end - begin)
    elif kind == 5:
        changed[begin:begin] = changed[begin:end] or b"\0"
    elif kind == 6:
        changed[begin:] = other[begin:]
    else:
        changed += source.randbytes(source.choice([1, 7, 4096]))
    return bytes(changed)


class Explosive:
    """Makes a directory where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARK,)


PICKLES = [pickle.dumps(Explosive(), protocol) for protocol in (0, 2, 4, 5)]


# What loading did.

_FORBIDDEN = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
)
_CACHES = re.compile("__pycache__|pytest_cache")
"""Where Python keeps what it compiled, and the tests what XLA did."""
_seen: list[str] | None = None
_root = ""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event in _FORBIDDEN:
        _seen.append(f"{event} {arguments!r:.200}")
    elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not _CACHES.search(path) and not path.startswith(_root) and (writes or path.startswith(("/etc/", "/dev/"))):
            _seen.append(f"open {path}")
    elif event in ("os.remove", "os.rmdir", "os.rename", "os.mkdir", "os.truncate", "shutil.rmtree", "os.symlink", "os.link"):
        for path in arguments[:2]:
            if not isinstance(path, str | bytes | os.PathLike) or _CACHES.search(os.fsdecode(path)):
                continue
            if not os.path.abspath(os.fsdecode(path)).startswith(_root):
                _seen.append(f"{event} {arguments!r:.200}")


sys.addaudithook(_hook)


@contextlib.contextmanager
def watched(root: Path) -> Iterator[None]:
    """Nothing runs, and nothing outside of a directory is written."""
    global _seen, _root
    _seen, _root = [], os.path.realpath(root)
    try:
        yield
        assert not _seen, _seen
    finally:
        _seen = None
    assert not Path(MARK).exists() and not (root / MARK).exists()


class TookTooLongError(BaseException):
    """No `except Exception` hides it."""


def _alarm(number: int, frame: Any) -> None:
    raise TookTooLongError


@dataclass
class Tally:
    """Loads files, and counts what came of it."""

    kinds: Collection[type[BaseException]]
    """The error that is documented."""
    most_lines: int = 1
    cases: int = 0
    refused: int = 0
    slowest: float = 0.0
    messages: set[str] = field(default_factory=set)

    def attempt(self, what: str, load: Callable[[], Any], *names: str) -> Any:
        """What loading gives; None where it is refused, in one line that names one of these files."""
        self.cases += 1
        before = signal.signal(signal.SIGALRM, _alarm)
        signal.setitimer(signal.ITIMER_REAL, 6 * TOO_LONG)
        began = time.process_time()
        try:
            return load()
        except tuple(self.kinds) as error:
            self.refused += 1
            message = str(error)
            assert type(error) in self.kinds, f"{what}: {type(error)}"
            assert message.count("\n") < self.most_lines and 10 < len(message) < LONGEST_MESSAGE, f"{what}: {message[:3000]}"
            assert not names or any(name in message for name in names), f"{what}: {message}"
            message.encode()  # what no terminal could show
            self.messages.add(message)
            return None
        except BaseException as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:500]}") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)
            seconds = time.process_time() - began
            self.slowest = max(self.slowest, seconds)
            assert seconds < TOO_LONG, what


def put(file: Path, content: bytes) -> None:
    """Replace a file. Not in place: some file systems force a truncated file to the disk, and the tests do it many thousand times."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)
