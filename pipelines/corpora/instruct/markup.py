"""HTML of web dumps as plain text with the marks of Markdown for code and lists.

Raw dumps of ShareGPT hold answers as the web page showed them. A text is HTML if it begins with a block element and
ends with a closing tag; every other text, one that asks about HTML included, is left as it is.
"""

import re
from html.parser import HTMLParser

_HTML = re.compile(
    r"\s*<(?:div|p|ol|ul|pre|h[1-6]|blockquote|table)\b[^<>]*>.*</[a-z0-9]+>\s*",
    re.IGNORECASE | re.DOTALL,
)
_BLOCKS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "div", "dl", "dt", "dd", "figure", "footer"),
        *("form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol"),
        *("p", "pre", "section", "table", "tbody", "thead", "tfoot", "tr", "ul"),
    )
)
_UNSEEN = frozenset(("button", "script", "style", "svg", "template", "title", "head"))
"""Elements whose text is no part of what was said (the button "Copy code")."""
_BULLET = re.compile(r"- |\d+\. ")
_LANGUAGE = re.compile(r"\blanguage-([\w+#-]+)")


def is_html(text: str) -> bool:
    """Whether a text is HTML as a whole."""
    return text.lstrip()[:1] == "<" and _HTML.fullmatch(text) is not None


def plain_text(html: str) -> str:
    """The text that a page of this HTML shows; code keeps its fences, lists their bullets and numbers."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    return parser.text()


class _Text(HTMLParser):
    """Collects text and line breaks; unbalanced tags lose nothing but their own marks."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._num_unseen = 0
        self._is_pre = self._is_code = False
        self._lists: list[int | None] = []  # of a numbered list the last number
        self._cells = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _UNSEEN:
            self._num_unseen += 1
        if tag == "br":
            self._parts.append("\n")
        elif tag == "pre":
            self._is_pre = True
            self._break()
        elif tag == "code":
            self._open_code(dict(attrs))
        elif tag in ("ol", "ul"):
            self._lists.append(0 if tag == "ol" else None)
            self._break()
        elif tag == "li":
            self._break()
            self._parts.append(self._bullet())
        elif tag in ("td", "th"):
            self._parts.append(" | " if self._cells else "")
            self._cells += 1
        elif tag in _BLOCKS:
            self._cells = 0
            self._break()

    def handle_endtag(self, tag: str) -> None:
        if tag in _UNSEEN:
            self._num_unseen = max(0, self._num_unseen - 1)
        if tag == "pre":
            self._is_pre = False
        elif tag == "code" and self._is_code:
            self._is_code = False
            self._parts.append("\n```\n" if self._is_pre else "`")
        elif tag in ("ol", "ul") and self._lists:
            self._lists.pop()
        if tag in _BLOCKS:
            self._break(is_paragraph=tag not in ("li", "tr", "div") and not self._lists)

    def handle_data(self, data: str) -> None:
        if self._num_unseen:
            return
        if self._is_pre:
            if self._is_code:  # what else stands in it names the language
                self._parts.append(data)
        elif self._is_code:
            self._parts.append(data)
        elif data.strip() or not self._is_line_start():
            self._parts.append(re.sub(r"\s+", " ", data))

    def text(self) -> str:
        text = "".join(self._parts)
        text = re.sub(r"[ \t]+\n", "\n", text)
        return re.sub(r"\n{3,}", "\n\n", text).strip()

    def _open_code(self, attributes: dict[str, str | None]) -> None:
        self._is_code = True
        language = _LANGUAGE.search(attributes.get("class") or "")
        fence = f"```{language[1] if language else ''}\n"
        self._parts.append(fence if self._is_pre else "`")

    def _bullet(self) -> str:
        if not self._lists or self._lists[-1] is None:
            return "- "
        self._lists[-1] += 1
        return f"{self._lists[-1]}. "

    def _break(self, is_paragraph: bool = False) -> None:
        """A line break, unless a line begins here already."""
        if not self._is_line_start():
            self._parts.append("\n")
        if is_paragraph:
            self._parts.append("\n")

    def _is_line_start(self) -> bool:
        """Whether nothing stands in this line yet, but perhaps a bullet."""
        last = next((part for part in reversed(self._parts) if part), "\n")
        return last.endswith("\n") or _BULLET.fullmatch(last) is not None
