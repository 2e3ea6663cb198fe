"""`plumbline keys`: the file of API keys that a served model goes by."""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path

FILE = Path("keys.yaml")


def add_keys(commands: argparse._SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the command."""
    text = "make, list and revoke API keys of served models"
    keys = commands.add_parser("keys", help=text, description=text.capitalize() + ".", epilog=epilog)
    actions = keys.add_subparsers(required=True, metavar="new|list|revoke")

    new = actions.add_parser("new", help="make a key, show it once, and add its hash to the file", epilog=epilog)
    new.add_argument("name", metavar="NAME", help="whose it is; limits, logs and metrics are by it")
    for limit, words in (
        ("requests-per-minute", "requests a minute"),
        ("tokens-per-minute", "tokens a minute, read and drawn"),
        ("max-concurrent-requests", "requests at the same time"),
    ):
        new.add_argument(f"--{limit}", type=_count, metavar="N", help=f"{words}; default: the deployment's limit")
    new.add_argument("--expires", type=_day, metavar="YYYY-MM-DD", help="the last day on which it works, UTC")
    new.set_defaults(command=_new)

    show = actions.add_parser("list", help="show names, limits and beginnings of hashes", epilog=epilog)
    show.set_defaults(command=_list)

    revoke = actions.add_parser("revoke", help="take a key out of the file", epilog=epilog)
    revoke.add_argument("name", metavar="NAME", help="whose it was")
    revoke.set_defaults(command=_revoke)
    for action in (new, show, revoke):
        action.add_argument("--file", type=Path, default=FILE, metavar="FILE", help=f"the file ({FILE})")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"'{text}' is no limit; give a whole number from 1 on")
    return int(text)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no day; give one as 2027-01-31") from error


def _new(options: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from plumbline.errors import InvalidInput
    from plumbline.serving.admission.keys import ApiKey, digest, new_key, read_keys, write_keys

    keys = read_keys(options.file) if options.file.exists() else []
    if any(key.name == options.name for key in keys):
        raise InvalidInput(f"{options.file} has a key '{options.name}'; revoke that first, or give this one another name")
    key = new_key()
    try:
        entry = ApiKey(
            name=options.name,
            digest=digest(key),
            requests_per_minute=options.requests_per_minute,
            tokens_per_minute=options.tokens_per_minute,
            max_concurrent_requests=options.max_concurrent_requests,
            expires=options.expires,
        )
    except ValidationError as error:
        raise InvalidInput(
            f"'{options.name}' is no name of a key; use up to 100 letters, digits, '.', '_', '-' and '@', a letter or digit first"
        ) from error
    write_keys(options.file, [*keys, entry])
    print(key)
    return 0


def _list(options: argparse.Namespace) -> int:
    from plumbline.serving.admission.keys import read_keys

    rows: list[tuple[str, ...]] = [("NAME", "SHA-256", "REQUESTS/MIN", "TOKENS/MIN", "CONCURRENT", "EXPIRES")]
    for key in read_keys(options.file):
        limits = (key.requests_per_minute, key.tokens_per_minute, key.max_concurrent_requests, key.expires)
        rows.append((key.name, f"{key.digest[:12]}…", *(str(limit or "-") for limit in limits)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from plumbline.errors import InvalidInput
    from plumbline.serving.admission.keys import read_keys, write_keys

    keys = read_keys(options.file)
    kept = [key for key in keys if key.name != options.name]
    if len(kept) == len(keys):
        names = ", ".join(f"'{key.name}'" for key in keys) or "none"
        raise InvalidInput(f"{options.file} has no key '{options.name}'; it has {names}")
    write_keys(options.file, kept)
    print(f"{options.name}: revoked; servers that read this file refuse it within seconds")
    return 0
