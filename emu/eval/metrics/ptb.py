"""Tokens of captions as COCO's official scorers compute them: in Python, or by Stanford's program.

Both tokenizers give the tokens of PTBTokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`) without the punctuation
that the official scorer drops. `PtbTokenizer` needs no Java. Its rules (`ptb_tables`, `ptb_forms`) were derived from
the output of the program for millions of generated strings; the grammar and the code of the program were not
consulted. docs/metrics.md states how far the two agree. `StanfordTokenizer` runs the program, which is part of the
package pycocoevalcap (extra `captions`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from emu.eval.metrics import ptb_tables as tables
from emu.eval.metrics.metric import optional_module, shown
from emu.eval.metrics.ptb_forms import Form, all_forms

# Dropped by the official scorer after lower-casing, so that -lrb- and the other brackets remain.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--"]
    + ["...", ";"]
)
# What the program takes for the end of a line. Inside a caption, each of them would shift the tokens of all later
# captions by one.
_LINE_END = re.compile("[\n\r\x0b\x0c\u2028\u2029]")
# Chunks between spaces whose tokens do not depend on their neighbors, unless the last word keeps its period.
_CONTEXT_FREE = re.compile('["(]*[A-Za-z]+(?:[-\'\u2019][A-Za-z]+)*[,;:!?)"]*\\.?')
_LAST_WORD = re.compile(r"([A-Za-z]+)\.\Z")
_PLAIN = re.compile("[A-Za-z]+(?= )")
_MAX_CACHED = 1 << 20
_WRAPPER = "pycocoevalcap.tokenizer.ptbtokenizer"
_PROGRAM = "edu.stanford.nlp.process.PTBTokenizer"


@dataclass(frozen=True)
class PtbTokenizer:
    """From captions to their tokens joined by spaces, in lower case and without punctuation.

    The tokens of a caption can depend on the beginning of the next one, as in the official scorer. Chunks between
    spaces are cached, so reuse one tokenizer.
    """

    _cache: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, captions: Sequence[str]) -> list[str]:
        """The tokens of each caption; raises ValueError for captions that are not Unicode text."""
        if not captions:
            return []
        text = "\n".join(one_line_each(captions))
        lines = text.split("\n")
        found, start, cached = [], 0, self._cache
        for index, line in enumerate(lines):
            # the end of the text is not a line end
            last = index == len(lines) - 1
            try:
                tokens = [cached[chunk] for chunk in line.split(" ")] if not last else None
            except KeyError:
                tokens = self._context_free_tokens(line)
            if tokens is None:
                tokens = self._scanned(text, start, start + len(line))
            found.append(" ".join(filter(None, tokens)))
            start += len(line) + 1
        return found

    def _context_free_tokens(self, line: str) -> list[str] | None:
        """The tokens of the chunks of a line, or None if one of them depends on its neighbors."""
        if len(self._cache) > _MAX_CACHED:
            self._cache.clear()
        for chunk in line.split(" "):
            if chunk not in self._cache:
                if chunk and not _is_context_free(chunk):
                    return None
                self._cache[chunk] = _without_punctuation(raw_tokens(f"{chunk} x\n", 0, len(chunk)))
        return [self._cache[chunk] for chunk in line.split(" ")]

    def _scanned(self, text: str, start: int, end: int) -> list[str]:
        line = " ".join(raw_tokens(text, start, end)).rstrip()
        return [token for token in line.split(" ") if token not in PUNCTUATION]


@dataclass(frozen=True)
class StanfordTokenizer:
    """From captions to their tokens joined by spaces; each call runs one process for all its captions."""

    java: Path
    jar: Path
    punctuation: frozenset[str]
    time_limit_s: float = 3600

    @classmethod
    def find(cls, java: str = "java") -> StanfordTokenizer:
        """The tokenizer of the installed pycocoevalcap, run by `java` (a path, or a name on the search path).

        Raises ModuleNotFoundError without the package and FileNotFoundError without its jar or Java, each with a hint.
        """
        wrapper = optional_module(
            _WRAPPER, "captions", "Stanford's tokenizer (--tokenizer java) needs"
        )
        folder = Path(str(wrapper.__file__)).parent
        jar = folder / wrapper.STANFORD_CORENLP_3_4_1_JAR
        if not jar.is_file():
            raise FileNotFoundError(f"no {jar.name} in {folder}; reinstall pycocoevalcap")
        found = shutil.which(java)
        if found is None:
            raise FileNotFoundError(
                f"Stanford's tokenizer needs Java, and there is no program {java!r}; install a Java runtime, or use "
                "the tokenizer in Python (--tokenizer python, docs/metrics.md)"
            )
        return cls(Path(found), jar, frozenset(wrapper.PUNCTUATIONS))

    def __call__(self, captions: Sequence[str]) -> list[str]:
        """The tokens of each caption, in lower case and without punctuation.

        Raises ValueError for captions that are not Unicode text, ChildProcessError if the program fails.
        """
        if not captions:
            return []
        lines = self._run("\n".join(one_line_each(captions)).encode()).split("\n")
        if len(lines) != len(captions):
            raise ChildProcessError(
                f"Stanford's tokenizer returned {len(lines)} lines for {len(captions)} captions, so tokens cannot be "
                "assigned to captions"
            )
        return [self._tokens(line) for line in lines]

    def _run(self, text: bytes) -> str:
        command = [str(self.java), "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8"]
        command += ["-cp", str(self.jar), _PROGRAM, "-preserveLines", "-lowerCase"]
        try:
            done = subprocess.run(
                command, input=text, capture_output=True, timeout=self.time_limit_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ChildProcessError(
                f"Stanford's tokenizer took longer than {self.time_limit_s:g} s for {len(text):,} bytes"
            ) from error
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip()[-500:]
            raise ChildProcessError(
                f"Stanford's tokenizer failed with exit code {done.returncode}: {message or 'no message'}"
            )
        return done.stdout.decode()

    def _tokens(self, line: str) -> str:
        return " ".join(word for word in line.rstrip().split(" ") if word not in self.punctuation)


def one_line_each(captions: Sequence[str]) -> list[str]:
    """The captions with spaces in place of line ends.

    Raises ValueError for captions with half a surrogate pair, which JSON can express.
    """
    text = "".join(captions)
    try:
        text.encode()
    except UnicodeEncodeError:
        wrong = [one for one in captions if any("\ud800" <= unit <= "\udfff" for unit in one)]
        raise ValueError(
            f"{len(wrong)} captions have half a surrogate pair, which is not a character: {shown(wrong)}"
        ) from None
    if _LINE_END.search(text):
        return [_LINE_END.sub(" ", caption) for caption in captions]
    return list(captions)


def raw_tokens(text: str, start: int, end: int) -> list[str]:
    """The tokens that begin from `start` to `end`, in lower case, punctuation included."""
    forms, joined, found = _forms(), _split_words(), list[str]()
    while start < end:
        plain = _PLAIN.match(text, start)
        if plain and plain[0].lower() not in joined:
            found.append(plain[0].lower())
            start = plain.end()
            continue
        farthest, chosen, form = start, None, None
        for candidate in forms:
            match = candidate.pattern.match(text, start)
            if match and (reach := match.end(1)) > farthest:
                farthest, chosen, form = reach, match, candidate
        if chosen is None or form is None:
            # the program drops characters that it does not know
            start += 1
            continue
        found.append(form.spell(chosen[0]))
        if form.ends_sentence:
            found.append(".")
        start = chosen.end()
    return [token for token in found if token]


def _without_punctuation(tokens: list[str]) -> str:
    return " ".join(token for token in tokens if token not in PUNCTUATION)


def _is_context_free(chunk: str) -> bool:
    if not _CONTEXT_FREE.fullmatch(chunk):
        return False
    word = _LAST_WORD.search(chunk)
    return word is None or not (len(word[1]) == 1 or _keeps_period().fullmatch(word[1]))


@cache
def _forms() -> tuple[Form, ...]:
    return all_forms()


@cache
def _keeps_period() -> re.Pattern[str]:
    words = " ".join((tables.TITLES, tables.SHORTENED, tables.BEFORE_NUMBERS))
    return re.compile(tables.alternatives(words))


@cache
def _split_words() -> frozenset[str]:
    return frozenset(tables.JOINED.replace("|", "").split())
