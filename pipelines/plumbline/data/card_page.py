"""The data card as one HTML page without external resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Whatever the rows hold: nothing is run, nothing is loaded."""
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap } td.bar { width: 50% }
.bar span { display: block; height: .8rem; background: #4878a8; min-width: 1px }
td { overflow-wrap: anywhere } pre, td { unicode-bidi: plaintext }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .4rem .6rem; margin: .3rem 0 }
"""


def render_html(card: Mapping[str, Any], title: str) -> str:
    """The card as one HTML page without external resources.

    Args:
        card: from `Tally.card`.
        title: heading, such as the stage's name.
    """
    kept = f"{card['rows']:,} of {card['records']:,} records became rows ({card['form']})"
    kept += f"; with repeats the dataset has {card['mix']['rows']:,}." if "mix" in card else "."
    parts = [f"<h1>Data card: {escape(title)}</h1><p>{kept}</p>", "<h2>Sources</h2>" + _sources_table(card["sources"])]
    by = card.get("droppedBy", {})
    bars = {
        "Dropped, by reason": {
            f"{reason} ({by[reason]})" if reason in by else reason: count for reason, count in card["dropped"].items()
        },
        "What was changed, by operation": card["operations"],
        "Characters in a row": {f"under {bin['below']:,}": bin["rows"] for bin in card["characters"]["histogram"]},
        "Turns in a row": {f"{turns} turns": rows for turns, rows in card["turns"].items()},
        "Turns by role": card["roles"],
        "Rows by record format": card["formats"],
        "Rows by language": card["languages"],
        "Rows by category": card["categories"],
        "Rows by licence": card["licences"],
        "Calls and tokens": card.get("calls", {}),
    }
    if "tokens" in card:
        tokens = card["tokens"]
        heading = (
            f"Tokens in a row (of {tokens['sampled']:,} rows; mean {tokens['mean']:,}, of answers {tokens['answerMean']:,}; "
            f"about {tokens['total']:,} in all)"
        )
        bars[heading] = {f"under {bin['below']:,}": bin["rows"] for bin in tokens["histogram"]}
    parts += [f"<h2>{heading}</h2>{_bars(counts)}" for heading, counts in bars.items() if counts]
    compared = dict(card.get("deduplication", {}))
    parts += [_compared(compared.pop("against"))] if "against" in compared else []
    parts += [_duplicates(method, found) for method, found in compared.items()]
    parts += [_contamination(card["contamination"])] if "contamination" in card else []
    if "selection" in card:
        parts.append(_selection(card["selection"]))
    if "mix" in card:
        parts.append(_mix(card["mix"]))
    parts += [_table("Textbook classifier", [card["textbook"]])] if "textbook" in card else []
    parts += [_examples(reason, examples) for reason, examples in card["examples"].items()]
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    head = f'<meta charset="utf-8">{policy}<title>Data card: {escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>' + "\n".join(parts) + "\n</body></html>\n"


def _compared(found: Mapping[str, Any]) -> str:
    """What rows were only compared with."""
    about = f"<p>{found['rows']:,} of {found['records']:,} records</p>"
    return f"<h2>Compared with other data</h2>{about}{_bars(found['dropped']) if found['dropped'] else ''}"


def _duplicates(method: str, found: Mapping[str, Any]) -> str:
    """Clusters of one method: how many of each size, and the largest."""
    sizes = {f"{size} rows": count for size, count in found["clusters"].items()}
    words = ", ".join(f"{name} {found[name]:,}" for name in ("dropped", "compared", "similar") if name in found)
    shown = "".join(
        f"<p>{cluster['rows']} rows</p>" + "".join(_excerpt(example) for example in cluster["examples"])
        for cluster in found["largest"]
    )
    return f"<h2>Duplicates: {escape(method)}</h2><p>{words}</p>{_bars(sizes) if sizes else ''}{shown}"


def _selection(found: Mapping[str, Any]) -> str:
    """What was chosen beside the baselines; of tags, the most frequent."""
    table = _table(f"Selection by {found['method']}, at equal budget", found["comparison"])
    if "tags" not in found:
        return table
    tags = found["tags"]
    about = f"<h2>Tags</h2><p>{tags['distinct']:,} different ones, {tags['meanOfRow']:,} in a row</p>{_bars(tags['rows'])}"
    return f"{table}{about}" + (f"<p>Without tags, by reason</p>{_bars(tags['unread'])}" if tags["unread"] else "")


def _mix(found: Mapping[str, Any]) -> str:
    """Achieved shares, and what bounded them."""
    table = _table(f"Mix of {found['rows']:,} rows", [{"name": "all programming"} | found["programming"], *found["sources"]])
    missed = f"Too few rows to come nearer to {', '.join(found['missed'])}." if found["missed"] else ""
    about = (
        f"Shares of {found['unit']}; in order: {found['order']}; left out: {found['leftOut']:,}; bound: {found['bound']}."
    )
    return f"{table}<p>{escape(about)} {escape(missed)}</p>"


def _contamination(found: Mapping[str, Any]) -> str:
    """How many questions of each benchmark occurred, and in how many rows."""
    names = ("items", "touched", "left", "rows", "rowsLeft")
    rows = (
        f"<tr><td>{escape(one['name'])}</td>{''.join(f'<td class=n>{one[name]:,}</td>' for name in names)}</tr>"
        for one in found["benchmarks"]
    )
    heads = ("questions", "found in rows", "still in the data", "rows that hold one", "still in the data")
    head = f"<tr><th>benchmark</th>{''.join(f'<th class=n>{words}</th>' for words in heads)}</tr>"
    about = ", ".join(f"{name} {value}" for name, value in (("action", found["action"]), *found["rule"].items()))
    return f"<h2>Contamination</h2><p>{escape(about)}</p><table>{head}{''.join(rows)}</table>"


def _table(heading: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines with the same keys, as columns."""
    head = "".join(f"<th{_side(value)}>{escape(name)}</th>" for name, value in lines[0].items())
    rows = ("".join(f"<td{_side(value)}>{escape(_figure(value))}</td>" for value in line.values()) for line in lines)
    return f"<h2>{escape(heading)}</h2><table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _side(value: Any) -> str:
    return "" if isinstance(value, str) else " class=n"


def _figure(value: Any) -> str:
    return (
        ""
        if value is None
        else f"{value:,}"
        if isinstance(value, int)
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value)
    )


def _sources_table(sources: Sequence[Mapping[str, Any]]) -> str:
    rows = (
        f'<tr><td>{escape(source["name"])}</td><td>{escape(source["uri"])}</td><td class="n">{source["records"]:,}</td>'
        f'<td class="n">{source["rows"]:,}</td>'
        f"<td>{escape(', '.join(f'{reason} {count:,}' for reason, count in source['dropped'].items()) or 'none')}</td></tr>"
        for source in sources
    )
    head = '<tr><th>source</th><th>URI</th><th class="n">records</th><th class="n">rows</th><th>dropped</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def _bars(counts: Mapping[str, int]) -> str:
    most = max(counts.values(), default=0) or 1
    rows = (
        f'<tr><td>{escape(name)}</td><td class="n">{count:,}</td><td class="bar">{_bar(count / most)}</td></tr>'
        for name, count in counts.items()
    )
    return f"<table>{''.join(rows)}</table>"


def _bar(share: float) -> str:
    return f'<span style="width:{share:.1%}"></span>' if share else ""


def _examples(reason: str, examples: Sequence[Mapping[str, Any]]) -> str:
    return f"<h2>Examples of “{escape(reason)}”</h2>{''.join(map(_excerpt, examples))}"


def _excerpt(example: Mapping[str, Any]) -> str:
    return f"<p>{escape(example['source'])}, record {example['record']}</p><pre>{escape(example['excerpt'])}</pre>"
