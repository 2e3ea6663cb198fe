"""What kind of file it is, by how it begins: what is refused as it is, and what text that is no JSON looks like."""

from __future__ import annotations

import ast
import json
import re

from plumbline.errors import InvalidInput

HEAD = 512
"""Bytes that tell: a tar archive says so only at byte 257."""
GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"

_READ = "JSON, JSONL, CSV, Parquet or text, plain or as .gz or .zst"
_OTHERS = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x04\x22\x4d\x18": "lz4 data",
    b"ARROW1": "an Arrow file",
    b"\xff\xff\xff\xff": "an Arrow stream, as datasets' save_to_disk writes it",
    b"PARE": "an encrypted Parquet file",
    b"Obj\x01": "an Avro file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy file, which can hold pickles",
    b"SQLite format 3\0": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an old Office file",
    b"%PDF-": "a PDF document",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"version https://git-lfs": "a Git LFS pointer, not the data",
}
"""How files begin that are refused, and what they are."""
_PICKLE = re.compile(rb"\x80[\x02-\x05][\x95\x00-\x7f]")
_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_WITHOUT_MARK = re.compile(rb"(?:[\x09-\x7e]\0){4}|(?:\0[\x09-\x7e]){4}")
_FIELDS = re.compile(r"\s*[\w .-]{1,60}(?:[,;\t|]\s*[\w .-]{1,60})+\s*")


def compression(head: bytes) -> str | None:
    """`gzip`, `zstd`, or None where the bytes are plain. Parallel zstd begins with a frame that is to be skipped."""
    skipped = head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5
    return "gzip" if head.startswith(GZIP) else "zstd" if head.startswith(ZSTD) or skipped else None


def check_kind(head: bytes, shown: str, packed: str | None = None) -> None:
    """Refuse what is not read, by its first bytes.

    Args:
        head: the first `HEAD` bytes.
        shown: the file's name in messages.
        packed: the compression that they came out of.

    Raises:
        InvalidInput: an archive, another format, or text that is not UTF-8.
    """
    kind = next((kind for magic, kind in _OTHERS.items() if head.startswith(magic)), None)
    if head[257:262] == b"ustar":
        kind = "a tar archive"
    elif _PICKLE.match(head):
        kind = "a Python pickle, which can run code"
    elif packed and (inner := "Parquet" if head.startswith(PARQUET) else compression(head)):
        kind = f"{inner} within {packed} data; unpack it once"
    if kind:
        raise InvalidInput(f"{shown} is {kind}; give {_READ}")
    for mark, name in _MARKS:
        if head.startswith(mark):
            raise _not_utf8(shown, name, name)
    if _WITHOUT_MARK.match(head):
        raise _not_utf8(shown, "UTF-16 (it has no byte order mark)", "UTF-16BE" if head[0] == 0 else "UTF-16LE")


def _not_utf8(shown: str, kind: str, name: str) -> InvalidInput:
    return InvalidInput(f"{shown} is {kind} text; only UTF-8 is read: convert it (iconv -f {name} -t UTF-8)")


def looks_like(head: bytes) -> str | None:
    """What text that was taken for JSON lines looks like instead, and what to do; None where it may well be JSON."""
    first = head.decode(errors="replace").lstrip("\ufeff \t\r\n").split("\n", 1)[0].rstrip()
    lower = first[:20].lower()
    if lower.startswith(("<!doctype html", "<html")):
        return "an HTML page (of an error, or to log in?): fetch the data themselves"
    if first.startswith("<"):
        return "XML or HTML: write one JSON object a line"
    if first.startswith("{"):
        return _nearly_json(first)
    if first.startswith("[") or first in ("null", "true", "false"):
        return None
    if first.startswith(("- ", "---")) or re.match(r"\w+:(\s|$)", first):
        return "YAML: write one JSON object a line"
    if _FIELDS.fullmatch(first):
        return "CSV: let its name end in .csv or .tsv"
    if re.match(r"[^\W\d]", first):
        return "plain text: let its name end in .txt, if text is what the stage asks for"
    return None


def _nearly_json(line: str) -> str | None:
    if "\r" in line:
        return "lines that end in a carriage return only: write newlines (tr '\\r' '\\n')"
    if line.endswith(","):
        try:
            json.loads(line[:-1])
            return "the elements of a JSON array without its brackets: put them in [ and ]"
        except (ValueError, RecursionError):
            return None
    if re.match(r"\{\s*'", line):
        try:
            ast.literal_eval(line)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
        return "Python literals (single quotes): write JSON (json.dumps)"
    return None
