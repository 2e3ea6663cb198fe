"""A sheet as one HTML page that works without a network: verdicts by click or key, kept in the browser, handed over as CSV."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources

from plumbline.evaluation.people.sheet import VERDICTS, Kind, Sheet, Texts, columns

TITLES: dict[Kind, str] = {"pairwise": "Which answer is better?", "acceptability": "How good is the answer?"}
GUIDES: dict[Kind, str] = {
    "pairwise": "Read the request and both answers, then say which answer you would rather have been given: more correct, more helpful, "
    "complete. Length alone earns nothing. The order of the answers is random, also from one request to the next.",
    "acceptability": "Read the request and the answer. A: acceptable, a right and complete answer. B: minor errors, still useful. C: major errors: "
    "on the topic, but wrong or missing in what matters. D: unacceptable: irrelevant, or no answer.",
}


def render(sheet: Sheet, kind: Kind, texts: Texts) -> str:
    """The page. It names no model, no task and no item; its policy lets it load nothing and run its own script only."""
    folder = resources.files("plumbline.evaluation.people")
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    data = {
        "token": sheet.token,
        "columns": columns(kind),
        "verdicts": [{"value": value, "meaning": meaning} for value, meaning in VERDICTS[kind].items()],
        "rows": [
            {
                "id": row.id,
                "request": texts[row.task, row.item, row.models[0]].request,
                "answers": [texts[row.task, row.item, model].text for model in row.models],
            }
            for row in sheet.rows
        ],
    }
    # Nothing in a model's answer can end the block that it stands in.
    text = (
        json.dumps(data, ensure_ascii=False)
        .replace("<", "\\u003c")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )
    policy = f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; base-uri 'none'; form-action 'none'"
    title = TITLES[kind]
    keys = ", ".join(value[0].upper() for value in VERDICTS[kind])
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style></head>
<body>
<header>
<h1>{title}</h1>
<p>{GUIDES[kind]} Keys: {keys}, the arrows, N. Your verdicts stay in this browser; when you are done, or to go on elsewhere, download them and send the file back.</p>
<p class="bar"><label>Your name <input id="rater" autocomplete="off" maxlength="80"></label>
<button id="download">Download answers</button>
<label class="button">Load answers <input id="load" type="file" accept=".csv,.tsv,.txt,text/csv"></label>
<button id="restart">Start over</button></p>
<p><progress id="progress"></progress> <span id="count"></span></p>
</header>
<p id="message" role="status" aria-live="polite"></p>
<main>
<h2>Request</h2><pre id="request" dir="auto"></pre>
<div id="answers"></div>
<p><label>Comment, if you like <textarea id="comment" rows="2"></textarea></label></p>
</main>
<footer><div id="verdicts"></div>
<div><button id="previous" title="left arrow">← previous</button> <button id="next" title="right arrow">next →</button>
<button id="open" title="N">next without verdict (N)</button> <button id="clear" title="Backspace">take back</button></div></footer>
<noscript><p>This page needs scripts. The CSV beside it can be filled in with any spreadsheet instead.</p></noscript>
<script type="application/json" id="sheet">{text}</script>
<script>{script}</script>
</body></html>
"""


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
