"""HTML answers, as ShareGPT saved them from the web page, to Markdown."""

from __future__ import annotations

import re
from typing import Any

from plumbline.data.normalise import clean
from plumbline.data.row import Reject

_BEGINS = re.compile(r"<(p|div|ol|ul|pre|h[1-6]|blockquote|table)(\s[^<>]*)?>", re.IGNORECASE)
_ENDS = re.compile(r"</(p|div|ol|ul|pre|h[1-6]|blockquote|table)>\s*$", re.IGNORECASE)
_PAGE = re.compile(r"<(html|head|body|script|style|form|input|label|select|nav|main|section|header|footer)\b", re.IGNORECASE)


def is_html(text: str) -> bool:
    """Whether a text is HTML from its first to its last character, as a page shows text: no form, script or whole page.

    A text that only speaks of tags, or has them in code blocks, is not.
    """
    text = text.strip()
    return bool(text.startswith("<") and _BEGINS.match(text) and _ENDS.search(text) and not _PAGE.search(text))


def to_markdown(html: str) -> str:
    """The same text in Markdown; blocks of code keep their language and lose the page's buttons.

    Raises:
        Reject: elements are nested too deeply to be read.
    """
    import bs4  # takes a tenth of a second, and few sources need it
    from markdownify import MarkdownConverter

    try:
        soup = bs4.BeautifulSoup(html, "html.parser")
        for element in soup(["button", "svg", "script", "style"]):
            element.decompose()
        for block in soup("pre"):
            code = block.find("code")
            if code is not None:  # beside it is the page's own line with the language
                block.replace_with(_code_block(soup, code))
        converter = MarkdownConverter(
            heading_style="ATX",
            bullets="-",
            code_language_callback=lambda block: block.get("data-language", ""),
            escape_asterisks=False,
            escape_underscores=False,
        )
        return clean(re.sub(r"\n{3,}", "\n\n", converter.convert_soup(soup)))
    except RecursionError as error:
        raise Reject("HTML nested too deeply") from error


def _code_block(soup: Any, code: Any) -> Any:
    block = soup.new_tag("pre")
    names = code.get("class") or []
    block["data-language"] = next((name.removeprefix("language-") for name in names if name.startswith("language-")), "")
    block.string = code.get_text().strip("\n")
    return block
