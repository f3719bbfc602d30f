"""Damage to bytes: what disks, networks, other programs and attackers do to files.

Every mutator takes a random generator, a file's content and the contents of other files of its kind, and returns the
damaged content. The same generator state gives the same damage.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

Mutator = Callable[[Random, bytes, Sequence[bytes]], bytes]

INTERESTING: Final = (0, 1, 2, 7, 8, 16, 32, 64, 100, 127, 128, 255, 256, 1024, 30_000, 32_767, 32_768, 65_535, 65_536)
"""Values at which signs, sizes and types turn over; wider fields add those of 2^31, 2^32, 2^63 and 2^64."""
_WIDE: Final = (2**31 - 1, 2**31, 2**32 - 1, 2**32 - 8, 2**63 - 1, 2**63, 2**64 - 1, 2**40, 10**9)
_FLOATS: Final = (0.0, -0.0, -1.0, 1e-300, 1e38, 1e300, float("nan"), float("inf"), float("-inf"), 0.5, 2.0**31)
LARGEST: Final = 1 << 20
"""Bytes that a damaged file has at most, so that a case stays quick."""


def flip_bit(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Flip one bit, as failing memory does."""
    changed = bytearray(content)
    changed[_position(random, content)] ^= 1 << random.randrange(8)
    return bytes(changed)


def set_byte(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Set one byte to an extreme or a random value."""
    changed = bytearray(content)
    changed[_position(random, content)] = random.choice((0x00, 0xFF, 0x7F, 0x80, 0x01, random.randrange(256)))
    return bytes(changed)


def truncate(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Cut the end off, as an interrupted copy does."""
    return content[: _position(random, content)]


def cut_out(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Take a piece out of the middle."""
    start = _position(random, content)
    return content[:start] + content[start + _length(random) :]


def insert(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Put bytes in: zeros, ones, or random."""
    start, length = _position(random, content), _length(random)
    piece = random.choice((bytes(length), b"\xff" * length, random.randbytes(length)))
    return content[:start] + piece + content[start:]


def duplicate(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Repeat a piece, once or many times."""
    start = _position(random, content)
    piece = content[start : start + _length(random)]
    return content[:start] + piece * random.choice((2, 3, 17, 200)) + content[start + len(piece) :]


def move(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Copy a piece over another."""
    source, target, length = _position(random, content), _position(random, content), _length(random)
    piece = content[source : source + length]
    return content[:target] + piece + content[target + len(piece) :]


def splice(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Join the beginning of this file to the end of another of its kind."""
    other = random.choice(list(others) or [content])
    return content[: _position(random, content)] + other[_position(random, other) :]


def set_number(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Write an extreme number over an aligned field, in either byte order, as a whole number or a float."""
    width = random.choice((1, 2, 2, 4, 4, 8))
    if len(content) < width:
        return content
    start = _position(random, content[: len(content) - width + 1]) // width * width
    if width >= 4 and random.random() < 0.25:
        value = random.choice(_FLOATS)
        try:
            field = struct.pack(f"{random.choice('<>')}{'f' if width == 4 else 'd'}", value)
        except OverflowError:
            field = b"\xff" * width
    else:
        number = random.choice((*INTERESTING, *_WIDE)) * random.choice((1, 1, 1, -1)) % (1 << 8 * width)
        field = number.to_bytes(width, random.choice(("little", "big")))
    return content[:start] + field + content[start + width :]


_STEPS: Final[tuple[Mutator, ...]] = (
    *(flip_bit, set_byte, set_number, set_number, set_number),
    *(truncate, cut_out, insert, duplicate, move, splice),
)


def mutate_bytes(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage a file by one to six steps of any kind."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        if content:
            content = random.choice(_STEPS)(random, content, others)[:LARGEST]
    return content


def one_of(*mutators: Mutator) -> Mutator:
    """Return a mutator that applies one of several; name one twice to have it twice as often."""

    def mutate(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
        return random.choice(mutators)(random, content, others)

    return mutate


def inside_gzip(mutator: Mutator) -> Mutator:
    """Return a mutator of what a gzip file holds: the checksum is right, so that the damage reaches the reader."""

    def mutate(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
        inner = mutator(random, gzip.decompress(content), [gzip.decompress(other) for other in others])
        return gzip.compress(inner, mtime=0)

    return mutate


def inside_zip(mutator: Mutator) -> Mutator:
    """Return a mutator of one member of a zip file, such as an array of an npz file, with a right checksum."""

    def mutate(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info: archive.read(info) for info in archive.infolist()}
        chosen = random.choice(list(members))
        members[chosen] = mutator(random, members[chosen], list(members.values()))
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for info, member in members.items():
                archive.writestr(info, member, compress_type=info.compress_type)
        return buffer.getvalue()

    return mutate


def inside_png(mutator: Mutator) -> Mutator:
    """Return a mutator of one chunk of a PNG file, with right checksums; pixel data are damaged before packing."""

    def mutate(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
        chunks = []
        position = 8
        while position + 12 <= len(content):
            length, kind = struct.unpack_from(">I4s", content, position)
            chunks.append((kind, content[position + 8 : position + 8 + length]))
            position += 12 + length
        chosen = random.randrange(len(chunks))
        kind, body = chunks[chosen]
        if kind == b"IDAT" and random.random() < 0.7:
            body = zlib.compress(mutator(random, zlib.decompress(body), ()))
        else:
            body = mutator(random, body, [other for _, other in chunks])
        chunks[chosen] = (kind, body)
        packed = [
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        ]
        return content[:8] + b"".join(packed)

    return mutate


def mutate_lines(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Edit the lines of a text, or of the textual header before binary data: numbers, words, order, repetition."""
    end = content.find(b"\n\n")
    head, rest = (content, b"") if end < 0 else (content[:end], content[end:])
    lines = head.split(b"\n")
    for _ in range(random.choice((1, 1, 2, 3))):
        index = random.randrange(len(lines))
        lines[index : index + 1] = _edited(random, lines[index], lines)
        if not lines:
            lines = [b""]
    return (b"\n".join(lines) + rest)[:LARGEST]


_WORDS: Final = (
    *(b"", b"0", b"-1", b"1e400", b"nan", b"inf", b"1" * 400, b"9" * 5000, b"99999999999", b"0x10", b"1_000"),
    *(
        b"/etc/passwd",
        b"../../../../etc/passwd",
        b"A" * 70_000,
        b"\xff\xfe",
        "ｆｕｌｌ １２".encode(),
        b"\x00",
        b"%s%n",
    ),
    *(b"True", b"(1,0,0) none", b"{", b'"', b"'", b",,,,", b"\t", b"\r", b"LIST 3", b"slice%03d.raw 1 9 1", b"\x1b[2J"),
)


def _edited(random: Random, line: bytes, lines: Sequence[bytes]) -> list[bytes]:
    words = line.split(b" ")
    word = random.randrange(len(words))
    kind = random.randrange(7)
    if kind == 0:
        return []
    if kind == 1:
        return [line] * random.choice((2, 3, 500))
    if kind == 2:
        return [line, random.choice(lines)]
    if kind == 3 and line:
        return [mutate_bytes(random, line, lines)]
    if kind == 4:
        for mark in (b":=", b": ", b" = ", b"=", b":", b",", b";"):
            if mark in line:
                return [line.partition(mark)[0] + mark + random.choice(_WORDS)]
    words[word] = random.choice(_WORDS)
    return [b" ".join(words)]


def _position(random: Random, content: bytes) -> int:
    """A position, in half of the cases among the first 512 bytes, where headers stand."""
    length = max(1, len(content))
    return random.randrange(min(length, 512) if random.random() < 0.5 else length)


def _length(random: Random) -> int:
    return random.choice((1, 2, 3, 4, 8, 16, 33, 64, 200, 1000))
