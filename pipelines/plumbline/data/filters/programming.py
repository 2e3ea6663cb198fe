"""Which rows are about programming: texts that are or show code, and prompts that ask for some."""

from __future__ import annotations

import re
from dataclasses import replace

from plumbline.data.row import Row

PROGRAMMING = "programming"
"""The category of such rows; mixing goes by it."""
CODE_SHARE = 0.4  # of a text's lines, from which on it is code: declarations of fields and data look like nothing
FEWEST_LINES = 2  # of code one after the other, in prose
READ, LONGEST_LINE = 20_000, 400  # characters of a text, and of a line, that decide
_FENCE = re.compile(r"```[^\n`]*\n")
# What a line of code looks like and a line of prose does not: by forms that languages share, not language by language.
_FORMS = (
    # import, include
    r"(?:from [\w.]+ )?import [\w.*{]+(?: as \w+|, ?\w+)*;?$|#\s*(?:include|define|ifn?def)\b|#!/|(?:using|package) [\w.]+;?$",
    # a function, a class, a decorator
    r"(?:async )?def \w+ ?\(|class \w+ ?[(:{]|(?:export |public |private |static )*(?:function|func|fn) \w+ ?\(",
    r"@\w+(?:\(.*\))?$",
    # control
    r"(?:if|elif|else if|for|while|switch|catch|with)\b.*(?:[)\w'\"\]] ?:|\{|; ?(?:do|then))$",
    r"(?:else|try|finally|do) ?[:{]?$|(?:done|fi|end)$",
    # a declaration, a statement's end, a block's begin and end
    r"(?:public|private|protected|static|const|let|var|val|final|int|float|double|char|bool\w*|string|void|auto) [^.?!]*[=({;]",
    r"(?!\d+\.).*(?:[=()\[\]{}+<>]|\w\.\w).*;(?:\s*(?://|/\*).*)?$|[\w-]+: [^.?!]+;$",
    r".*[)\w>=] ?\{$|[\s})\]]*\}[\s})\];,]*(?:else \{)?$|[)\]]+[;,]*$",
    # SQL, markup
    r"(?:SELECT|FROM|WHERE|(?:ORDER|GROUP) BY|VALUES|HAVING|LIMIT|SET|(?:INNER |LEFT |RIGHT )?JOIN) [\w*(`\"']",
    r"(?:INSERT INTO|UPDATE \S+ SET|DELETE FROM|(?:CREATE|ALTER|DROP) (?:TABLE|DATABASE|INDEX|VIEW))\b",
    r"<!(?:DOCTYPE|--)|<\?(?:xml|php)|<(?!no)/?[a-z][\w-]*(?: [\w-]+=(?:\"[^\"]*\"|'[^']*'))*\s*/?>(?!$)|</[a-z]\w*>$",
    r"<(?:html|head|body|div|ul|table|tr)>$",
    # a call of a module's or an object's method, assigned
    r"[\w.\[\]]+ ?= ?(?:[a-z_]\w*\.)+\w+\(.*\)$",
    # output, return, a call alone, an item of data, a prompt
    r"(?:print|printf|puts|echo|console\.log|System\.out\.\w+|assert|raise|throw)\b ?[(\"'$].*[)\"';]$",
    r"return [\w.\"'({\[-].*[\w)\]}\"'+*/-]$(?<![a-z] [a-z])",
    r"[a-z_]*(?:\.\w+)+\(.*\)$|[a-z_]\w*\(['\"].*\)$|[\"'][\w ]+[\"'] ?: ?[\[{\"'\d].*,?$|(?:\$|>>>) [a-z]",
)
_LINE = re.compile(rf"\s*(?:{'|'.join(_FORMS)})")
# Mathematics has them too: alone they do not suffice.
_ASSIGNMENT = re.compile(r"\s*[\w.\[\]'\"]+ ?[-+*/|&]?:?= ?(?:[\w.]+\(|[\[{\"'\w-])")
_LANGUAGES = (
    r"(?<![\w.])(?:python|java\s?script|typescript|java|c\+\+|c#|sql|mysql|html5?|css3?|php|ruby|golang|rust|kotlin|scala|perl|matlab|"
    r"bash|shell|powershell|react\.?js|node\.?js|jquery|django|flask|numpy|pandas|tensorflow|keras|pytorch|scikit-learn|json|"
    r"xml|haskell|swift)(?![\w+#])"
)
_THINGS = (
    r"\b(?:code|programs?|functions?|scripts?|class(?:es)?|methods?|quer(?:y|ies)|snippet|algorithm|command|statement|page|table|"
    r"loop|list|array|string|variable|expression|app|application|module|library|syntax|object|dictionary|component|element|form|"
    r"button)\b"
)
_ASKS = re.compile(
    rf"{_LANGUAGES}.{{0,200}}{_THINGS}|{_THINGS}.{{0,200}}{_LANGUAGES}|"
    r"\b(?:source code|code snippet|pseudo-?code|unit tests?|recursive function|sorting algorithm|regular expression|regex)\b",
    re.IGNORECASE | re.DOTALL,
)


def is_code(text: str) -> bool:
    """Whether a text is code for the most part, or shows some: fenced, or at least two lines of it together."""
    if _FENCE.search(text):
        return True
    lines = [line[:LONGEST_LINE].rstrip() for line in text[:READ].split("\n") if line.strip()]
    sure = [_LINE.match(line) is not None for line in lines]
    if not any(sure):
        return False
    marks = [mark or _ASSIGNMENT.match(line) is not None for mark, line in zip(sure, lines, strict=True)]
    if sum(marks) >= CODE_SHARE * len(marks):
        return True
    runs = zip(*(marks[i:] for i in range(FEWEST_LINES)), strict=False)
    return any(all(run) and any(sure[i : i + FEWEST_LINES]) for i, run in enumerate(runs))


def is_programming(row: Row) -> bool:
    """Whether a row is about programming: an answer shows code, or a prompt shows or asks for some."""
    return any(map(is_code, row.answers)) or any(_ASKS.search(prompt[:READ]) or is_code(prompt) for prompt in row.prompts)


def mark_programming(row: Row) -> Row:
    """The row with the category `programming`, if it is about that; else as it is."""
    if row.category == PROGRAMMING or not is_programming(row):
        return row
    return replace(row, category=PROGRAMMING)
