"""Damages valid files as carelessness, hardware and malice do, each format in its own terms.

A file is taken apart as far as its format goes (a JSON tree, the chunks of a PNG, the members of a
zip archive, the header of a safetensors file), something in it is changed, and it is put together
again with sums and lengths that fit. As often, its bytes are changed as they are.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml

#: Integers at which readers stumble: signs, sizes, and what is just beyond them.
EDGES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 10**6)
EDGES += (2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53, 2**63 - 1, 2**63, 2**64 - 1)

#: What a bomb unpacks to, in bytes: more than the memory that a reader is given.
BOMB = 3 << 29


class Payload:
    """Unpickled, it makes a file: nothing may."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


class Damager:
    """Damages files.

    Args:
        outside: A folder that no reader may write to; what a payload makes is made there.
    """

    def __init__(self, outside: Path) -> None:
        self._outside = outside
        self._payload = pickle.dumps(Payload(outside / "run"))
        self._by_suffix: dict[str, Callable[[bytes, Random], bytes]] = {
            ".json": self._json,
            ".yaml": self._yaml,
            ".csv": self._text,
            ".txt": self._text,
            ".npz": self._npz,
            ".npy": self._npy,
            ".png": self._png,
            ".gz": self._gzip,
            ".safetensors": self._safetensors,
            ".pth": self._zip,
        }

    def damage(self, name: str, content: bytes, random: Random) -> bytes:
        """Returns a damaged file.

        Args:
            name: Its name, whose end says what it is.
            content: The valid one.
            random: Decides.
        """
        own = self._by_suffix.get(Path(name).suffix, self._bytes)
        chosen = random.choice((own, own, self._bytes))
        try:
            return chosen(content, random)
        except Exception:  # noqa: BLE001 - the format cannot say that, or the file is of another
            return self._bytes(content, random)

    def _bytes(self, content: bytes, random: Random) -> bytes:
        """Flips, cuts, inserts, repeats, splices, and puts numbers where numbers may be."""
        data = bytearray(content)
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            # Headers decide more than what follows them, and trailers nearly as much.
            size = len(data)
            near = random.choice((size, min(size, 64), min(size, 512)))
            at = random.randrange(near + 1)
            if random.random() < 0.2:
                at = size - at
            length = random.choice((1, 2, 4, 8, 64, 1024))
            edge = random.choice(EDGES)
            order: Any = random.choice(("little", "big"))
            width = random.choice((1, 2, 4, 8))
            number = (edge % 256**width).to_bytes(width, order)
            match random.randrange(10):
                case 0:
                    if size:
                        data[at % size] ^= 1 << random.randrange(8)
                case 1:
                    data[at : at + 1] = bytes([random.randrange(256)])
                case 2 | 3:
                    data[at : at + width] = number
                case 4:
                    del data[at : at + length]
                case 5:
                    data[at:at] = data[at : at + length]
                case 6:
                    data[at:at] = random.randbytes(length)
                case 7:
                    del data[at:]
                case 8:
                    data[at:at] = self._token(random)
                case 9:
                    other = random.randrange(size + 1)
                    data[at : at + length] = data[other : other + length]
        return bytes(data)

    def _token(self, random: Random) -> bytes:
        return random.choice(
            (
                *(b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3\x28", b"\r", b"\n\n", b'"', b"'"),
                *(b"[", b"{", b"[" * 3000, b'{"a":' * 3000, b"- " * 3000, b"&a *a", b"<<: *a"),
                *(b"NaN", b"1e999", b"-Infinity", b"9" * 5000, b"0x" + b"f" * 6000, b"null"),
                *(
                    b"!!python/object/apply:os.getpid []",
                    b"!!binary x",
                    b"!!set {a}",
                    b"2001-13-99",
                ),
                *(b"../" * 9 + b"etc/passwd", str(self._outside / "file").encode(), b"\\x00"),
                b"a" * 70_000,
            )
        )

    def _text(self, content: bytes, random: Random) -> bytes:
        """Changes a line or a field of a table of text."""
        lines = content.split(b"\n")
        at = random.randrange(len(lines))
        match random.randrange(5):
            case 0:
                lines[at:at] = [lines[random.randrange(len(lines))]] * random.choice((1, 2, 300))
            case 1:
                del lines[at]
            case 2:
                lines[at] += random.choice((b",", b";", b"\t", b'"')) * random.choice((1, 9, 9999))
            case _:
                fields = lines[at].split(b",")
                fields[random.randrange(len(fields))] = self._token(random)
                lines[at] = b",".join(fields)
        return b"\n".join(lines)

    # Trees

    def _value(self, random: Random) -> Any:
        """Returns a value that is not what is expected, wherever it stands."""
        deep: Any = []
        for _ in range(random.choice((2, 50, 300))):
            deep = [deep] if random.random() < 0.5 else {"a": deep}
        return random.choice(
            (
                *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf),
                *(*EDGES, 10**400, -(10**30), "", " ", "a", "0", "nan", "\0", "\n", "\ud800"),
                *(
                    "\N{RIGHT-TO-LEFT OVERRIDE}",
                    "x" * 70_000,
                    "..",
                    "../" * 9 + "tmp/x",
                    "/etc/passwd",
                ),
                *(
                    f"{self._outside}/file",
                    "file:///etc/passwd",
                    "s3://key:secret@bucket/x",
                    "~root",
                ),
                *(
                    "C:\\x",
                    "a/b",
                    "con",
                    "lab:x",
                    "os:system",
                    "2026-01-05",
                    "2026-13-99T99",
                    "=1+1",
                ),
                *([], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [0] * 5000, deep),
                *("AAAA", "eJwDAAAAAAE=", "[" * 5000, "9" * 5000),
            )
        )

    def _tree(self, tree: Any, random: Random) -> Any:
        """Returns a tree of mappings and lists in which something is changed."""
        tree = deepcopy(tree)
        for _ in range(random.choice((1, 1, 2, 4))):
            inner = [node for node in _nodes(tree) if isinstance(node, dict | list) and node]
            if not inner:
                return self._value(random)
            node = random.choice(inner)
            key = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
            match random.randrange(8):
                case 0:
                    del node[key]
                case 1 if isinstance(node, dict):
                    node[self._key(random)] = node.pop(key)
                case 2 if isinstance(node, dict):
                    node[self._key(random)] = self._value(random)
                case 3:
                    node[key] = deepcopy(random.choice(list(_nodes(tree))))
                case 4 if isinstance(node, list):
                    node += deepcopy(node) * random.choice((1, 50))
                case 5 if isinstance(node[key], int | float) and not isinstance(node[key], bool):
                    node[key] = random.choice((-node[key], node[key] + 1, node[key] / 3, 1e9))
                case _:
                    node[key] = self._value(random)
        return tree

    def _key(self, random: Random) -> str:
        key = self._value(random)
        return key if isinstance(key, str) else "a"

    def _json(self, content: bytes, random: Random) -> bytes:
        text = json.dumps(
            self._tree(json.loads(content), random), ensure_ascii=random.random() < 0.5
        )
        match random.randrange(12):
            case 0:
                text = "[" * 100_000 + text
            case 1:
                text = text.replace(":", ':{"a":' * 5000, 1)
            case 2:  # a key given twice
                text = text.replace("{", '{"number": 1, "number": 2, ', 1)
            case 3:
                text = text.replace("0", "9" * random.choice((20, 400, 5000)), 1)
        return text.encode("utf-8", "surrogatepass")

    def _yaml(self, content: bytes, random: Random) -> bytes:
        text = yaml.dump(self._tree(yaml.safe_load(content), random), sort_keys=False)
        head, _, rest = text.partition("\n")
        bomb = "".join(
            f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(25)
        )
        merges = "".join(
            f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" if n else "a0: &a0 {x: 1}\n"
            for n in range(12)
        )
        key = head.partition(":")[0]
        match random.randrange(16):
            case 0:
                text += bomb
            case 1:  # where anything may stand
                text = bomb + text.replace("{}", "{fixed: {x: *a24}}", 1)
            case 2:
                text += merges
            case 3:
                text = f"{text}x: {'[' * random.choice((50, 300, 20_000))}\n"
            case 4:
                text += f"x: &x {{y: *x}}\n{key}: *x\n"
            case 5:
                text = text.replace(": ", f": {self._token(random).decode('latin-1')} ", 1)
            case 6:
                text = f"? {{a: b}}\n: c\n{text}"
            case 7:
                text = f"1: 2\n{text}"
            case 8:
                text = f"{head}\n--- \n{rest}"
            case 9:
                text = f"%YAML 9.9\n---\n{text}"
            case 10:
                text += "x: &x [*x]\n"
        return text.encode("utf-8", "surrogatepass")

    # Arrays and archives

    def _array(self, array: Any, random: Random) -> Any:
        kind = random.choice(("f8", "f2", "i8", "u1", "S3", "U3", "?", "c16"))
        with np.errstate(invalid="ignore", over="ignore"):
            filled = np.array(random.choice((0, 1, -1, 1e30, math.nan, math.inf)))
            filled = np.full_like(array, filled.astype(array.dtype))
        one = array.copy()
        one.reshape(-1)[:1] = filled.reshape(-1)[:1]
        return random.choice(
            (
                *(array[:0], array[::-1], array.reshape(-1, 1), array.reshape(-1)[:1].reshape(())),
                *(array.astype(kind), np.concatenate([array, array]), filled, one),
                *(np.zeros(array.shape, [("a", "i4"), ("b", "f8", 3)]), np.array(["x" * 900])),
            )
        )

    def _npy(self, content: bytes, random: Random) -> bytes:
        match random.randrange(5):
            case 0:
                return self._object_array()
            case 1 | 2:  # what the header says
                shape = random.choice(
                    (
                        (2**62,),
                        (2**40,),
                        (2**31, 2**31),
                        (0, 2**40),
                        (-1,),
                        (10**9,),
                        (2**63, 4),
                        (),
                    )
                )
                kind = random.choice(
                    ("'|u1'", "'<f4'", "'|O'", "'<U99999999'", "[('a', '|O')]", "9")
                )
                return _npy(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}")
            case 3:
                return _npy(self._token(random).decode("latin-1"))
        return _to_npy(self._array(np.load(io.BytesIO(content)), random))

    def _object_array(self) -> bytes:
        return _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + self._payload

    def _npz(self, content: bytes, random: Random) -> bytes:
        return self._archive(content, random, self._npy)

    def _zip(self, content: bytes, random: Random) -> bytes:
        return self._archive(content, random, self._bytes)

    def _archive(
        self, content: bytes, random: Random, damage: Callable[[bytes, Random], bytes]
    ) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
        at = random.randrange(len(members))
        name, inner = members[at]
        match random.randrange(9):
            case 0:
                del members[at]
            case 1:
                members[at] = (
                    random.choice(("../" * 5 + name, f"/{name}", "", "a\0b", "\ud7ff")),
                    inner,
                )
            case 2:
                members.append((name, damage(inner, random)))
            case 3:
                members[at] = (name, self._payload)
            case 4:
                members[at] = (name, self._object_array())
            case 5 if random.random() < 0.1:  # it takes a second to unpack what is allowed of it
                return npz_bomb(name)
            case _:
                members[at] = (name, damage(inner, random))
        buffer = io.BytesIO()
        deflated = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(buffer, "w", deflated) as archive:
            for member, data in members:
                archive.writestr(member, data)
        return buffer.getvalue()

    def _gzip(self, content: bytes, random: Random) -> bytes:
        if random.random() < 0.01:
            return gzip_bomb()
        return gzip.compress(self._bytes(gzip.decompress(content), random), 1)

    def _safetensors(self, content: bytes, random: Random) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header, data = content[8 : 8 + length], content[8 + length :]
        changed = self._json(header, random)
        said = random.choice((len(changed),) * 5 + EDGES)
        return said.to_bytes(8, "little") + changed + data

    # Images

    def _png(self, content: bytes, random: Random) -> bytes:
        chunks, at = [], 8
        while at < len(content):
            (length,) = struct.unpack(">I", content[at : at + 4])
            chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
            at += 12 + length
        at = random.randrange(len(chunks))
        kind, data = chunks[at]
        match random.randrange(9):
            case 0:  # the size, the depth, the colour type, the interlacing
                kind, data = chunks[at := 0]
                head = bytearray(data)
                field = random.choice(((0, 4), (4, 4), (8, 1), (9, 1), (12, 1)))
                width = field[1]
                edge = random.choice((*EDGES, 3, 4, 6, 16, 20_000))
                head[field[0] : field[0] + width] = (edge % 256**width).to_bytes(width, "big")
                chunks[0] = (kind, bytes(head))
            case 1:
                del chunks[at]
            case 2:
                chunks.insert(at, random.choice(chunks))
            case 3:
                name = random.choice((b"iCCP", b"zTXt", b"iTXt"))
                between = {b"iCCP": b"\0\0", b"zTXt": b"\0\0", b"iTXt": b"\0\1\0\0\0"}[name]
                chunks.insert(1, (name, b"x" + between + _deflated_bomb()))
            case 4:
                chunks.insert(1, (b"acTL", struct.pack(">II", random.choice(EDGES) % 2**32, 0)))
            case 5:
                chunks.insert(1, (b"eXIf", b"MM\0*" + random.randbytes(60)))
            case 6:
                pixels = zlib.decompress(b"".join(d for k, d in chunks if k == b"IDAT"))
                packed = zlib.compress(self._bytes(pixels, random))
                chunks = [c for c in chunks if c[0] != b"IDAT"]
                chunks.insert(-1, (b"IDAT", packed))
            case _:
                chunks[at] = (kind, self._bytes(data, random))
        parts = [
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        ]
        return content[:8] + b"".join(parts)


def _nodes(tree: Any) -> list[Any]:
    found, at = [tree], 0
    while at < len(found):
        node = found[at]
        at += 1
        if isinstance(node, dict):
            found += node.values()
        elif isinstance(node, list):
            found += node[:50]
    return found


def _to_npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _npy(header: str) -> bytes:
    """Returns the beginning of a ``.npy`` file that says so."""
    text = header.encode("latin-1", "replace")
    return b"\x93NUMPY\x02\0" + struct.pack("<I", len(text) + 1) + text + b"\n"


@cache
def _zeros() -> bytes:
    """Returns a deflated block that unpacks to 16 MiB of zeros, wherever it stands in a stream."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)


def _bomb(begin: bytes = b"", size: int = BOMB) -> tuple[bytes, int]:
    """Returns a deflated stream of a beginning and so many zeros, and its CRC."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    head = packer.compress(begin) + packer.flush(zlib.Z_FULL_FLUSH)
    sum_ = zlib.crc32(begin)
    for _ in range(size >> 24):
        sum_ = zlib.crc32(bytes(1 << 24), sum_)
    return head + _zeros() * (size >> 24) + b"\x03\0", sum_


@cache
def _deflated_bomb() -> bytes:
    return b"\x78\x9c" + _bomb()[0] + b"\0\0\0\0"  # read to its end before its sum is looked at


@cache
def gzip_bomb(size: int = BOMB) -> bytes:
    """Returns a gzip file that unpacks to so many zeros."""
    stream, sum_ = _bomb(size=size)
    return gzip.compress(b"")[:10] + stream + struct.pack("<II", sum_, size % 2**32)


@cache
def npz_bomb(name: str, size: int = BOMB) -> bytes:
    """Returns an archive with one array of so many bytes, in a thousandth of them."""
    begin = _npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},)}}")
    stream, sum_ = _bomb(begin, size)
    sizes = struct.pack("<III", sum_, len(stream), size + len(begin))
    path = name.encode()
    said = struct.pack("<HHHHH", 20, 0, 8, 0, 33) + sizes + struct.pack("<HH", len(path), 0)
    local = b"PK\x03\x04" + said + path + stream
    listed = b"PK\x01\x02" + struct.pack("<H", 20) + said + bytes(14) + path
    return (
        local
        + listed
        + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, len(listed), len(local), 0)
    )
