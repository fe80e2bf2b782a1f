"""Mutations of files: of bytes, of words, of records, and of what lies inside an archive, packed again."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "x" * 5000, "../../etc/passwd", "a\0b",
    "\x1b[31mred\x1b[0m", "[bold]markup[/bold]", "${oc.env:HOME}", "0100", "1:30", [], {}, [[]], {"a": {"a": {"a": []}}},
    [1] * 2000, "ü€", "/dev/zero", "..",
)  # fmt: skip
"""Values that replace one of a record's."""

ODD_WORDS = [str(value).encode() for value in ODD_VALUES if not isinstance(value, dict | list)] + [
    b"[" * 500, b"{" * 500, b"&a [*a, *a]", b"!!python/name:os.system", b"!!bool foo", b"!!binary x", b"? ", b"<<: ",
    b"\xff\xfe", b"2024_07", b"0x10", b"1e400", b"-inf", b'"', b"'", b"\t", b"\r", b"\n\n", b"%s%n", b"- - - -",
    b"9" * 5000,
]  # fmt: skip
"""Words that replace a number or a word of a text."""


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, repeat, insert or remove bytes, once to four times."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(found) + 1), rng.choice((1, 2, 4, 8, 64))
        action = rng.randrange(7)
        if action == 0 and found:
            found[place % len(found)] ^= 1 << rng.randrange(8)
        elif action == 1:
            found[place : place + length] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
        elif action == 2:
            del found[place:]
        elif action == 3:
            found[place:place] = found[place : place + length] * rng.randint(1, 50)
        elif action == 4:
            found[place:place] = rng.randbytes(length)
        elif action == 5:
            del found[place : place + length]
        else:
            found[place : place + 4] = struct.pack(
                rng.choice("<>") + "I", rng.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1))
            )
    return bytes(found)


def mutated_text(content: bytes, rng: random.Random) -> bytes:
    """Replace a word or a number by an odd one, repeat, swap or remove lines; or mutate the bytes."""
    action = rng.randrange(6)
    if action == 0:
        return mutated_bytes(content, rng)
    if action in (1, 2):
        lines = content.split(b"\n")
        one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        if action == 1:
            lines[one:one] = [lines[other]] * rng.choice((1, 2, 500))
        else:
            del lines[one]
        return b"\n".join(lines)
    places = [i for i in range(len(content)) if content[i : i + 1].isalnum() and not content[i - 1 : i].isalnum()]
    if not places:
        return mutated_bytes(content, rng)
    start = rng.choice(places)
    end = start
    while end < len(content) and (content[end : end + 1].isalnum() or content[end : end + 1] in (b".", b"_", b"-")):
        end += 1
    return content[:start] + rng.choice(ODD_WORDS) + content[end:]


def mutated_json(content: bytes, rng: random.Random) -> bytes:
    """Replace or remove one value of a JSON record, anywhere in it; or mutate the text."""
    if rng.random() < 0.3:
        return mutated_text(content, rng)
    try:
        record = json.loads(content)
    except ValueError:
        return mutated_text(content, rng)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            walk(value[key])

    walk(record)
    if not places:
        return json.dumps(rng.choice(ODD_VALUES)).encode()
    holder, key = rng.choice(places)
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(ODD_VALUES)
    return json.dumps(record).encode()


def mutated_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Mutate the header and give it its right length; or mutate the bytes."""
    if rng.random() < 0.4:
        return mutated_bytes(content, rng)
    size = int.from_bytes(content[:8], "little")
    header = mutated_json(content[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def mutated_npy(content: bytes, rng: random.Random) -> bytes:
    """Mutate the text of the header, keeping its length right; or mutate the bytes."""
    if rng.random() < 0.4:
        return mutated_bytes(content, rng)
    size = int.from_bytes(content[8:10], "little")
    header = mutated_text(content[10 : 10 + size].rstrip() + b"\n", rng)[:60_000]
    return content[:8] + len(header).to_bytes(2, "little") + header + content[10 + size :]


def mutated_zip(content: bytes, rng: random.Random) -> bytes:
    """Mutate one member and pack the archive again; or mutate the bytes."""
    if rng.random() < 0.4:
        return mutated_bytes(content, rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as after:
        chosen = rng.choice(before.namelist())
        for name in before.namelist():
            inner = before.read(name)
            if name == chosen:
                inner = mutated_npy(inner, rng) if name.endswith(".npy") else mutated_text(inner, rng)
                inner = inner + bytes(20_000_000) if rng.random() < 0.02 else inner
            after.writestr(
                name if name != chosen or rng.random() < 0.9 else rng.choice(("../x.npy", "x", "x" * 300, "/x")), inner
            )
    return stream.getvalue()


def mutated_gzip(content: bytes, rng: random.Random) -> bytes:
    """Mutate what is inside and pack it again; or mutate the bytes."""
    if rng.random() < 0.4:
        return mutated_bytes(content, rng)
    inner = mutated_bytes(gzip.decompress(content), rng)
    return gzip.compress(inner + bytes(20_000_000 if rng.random() < 0.01 else 0), 1)


def mutated_png(content: bytes, rng: random.Random) -> bytes:
    """Mutate one chunk and give it a right length and checksum; or mutate the bytes."""
    if rng.random() < 0.4:
        return mutated_bytes(content, rng)
    chunks, place = [], 8
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    chosen = rng.randrange(len(chunks))
    name, data = chunks[chosen]
    chunks[chosen] = (name, mutated_bytes(data, rng))
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return content[:8] + b"".join(packed)
