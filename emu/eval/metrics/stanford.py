"""Tokens of captions by Stanford's own tokeniser, which the official scorers of COCO run.

The program is CoreNLP 3.4.1's PTBTokenizer inside the package pycocoevalcap (extra `captions`); it needs Java. The
options and the list of punctuation that is dropped afterwards are the official scorer's.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.eval.metrics.metric import shown
from emu.eval.metrics.optional import optional_module

_WRAPPER = "pycocoevalcap.tokenizer.ptbtokenizer"
_PROGRAM = "edu.stanford.nlp.process.PTBTokenizer"
# What the program takes for the end of a line, seen from its output: any of them inside a caption would give every
# later caption the tokens of the one before it.
_LINE_ENDS = str.maketrans(dict.fromkeys("\n\r\x0b\x0c\u2028\u2029", " "))


@dataclass(frozen=True)
class StanfordTokenizer:
    """Captions to their tokens joined by spaces; a call runs one process for all its captions."""

    java: Path
    jar: Path
    punctuation: frozenset[str]
    time_limit_s: float = 3600

    @classmethod
    def find(cls, java: str = "java") -> StanfordTokenizer:
        """The tokeniser of the installed pycocoevalcap, run by `java` (a path, or a name to look up).

        Raises ModuleNotFoundError without the package and FileNotFoundError without its jar or Java, each with
        what to do.
        """
        wrapper = optional_module(
            _WRAPPER, "captions", "captions as text (without --pre-tokenised) need"
        )
        folder = Path(str(wrapper.__file__)).parent
        jar = folder / wrapper.STANFORD_CORENLP_3_4_1_JAR
        if not jar.is_file():
            raise FileNotFoundError(f"no {jar.name} in {folder}; install pycocoevalcap again")
        found = shutil.which(java)
        if found is None:
            raise FileNotFoundError(
                f"tokens of captions need Java, and there is no program {java!r}: install a Java runtime, or give "
                "captions that are tokens already (--pre-tokenised, docs/metrics.md)"
            )
        return cls(Path(found), jar, frozenset(wrapper.PUNCTUATIONS))

    def __call__(self, captions: Sequence[str]) -> list[str]:
        """The tokens of each caption, in lower case and without punctuation.

        A caption's tokens can depend on the beginning of the next one, as they do in the official scorer.

        Raises ValueError for captions that are not Unicode text, ChildProcessError where the program fails.
        """
        if not captions:
            return []
        lines = self._run(_encoded(captions)).split("\n")
        if len(lines) != len(captions) + 1 or lines[-1]:
            raise ChildProcessError(
                f"Stanford's tokeniser gave {len(lines) - 1} lines for {len(captions)} captions, so none can be "
                "told which tokens are its own"
            )
        return [self._without_punctuation(line) for line in lines[:-1]]

    def _run(self, text: bytes) -> str:
        command = [str(self.java), "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8"]
        command += ["-cp", str(self.jar), _PROGRAM, "-preserveLines", "-lowerCase"]
        try:
            done = subprocess.run(
                command, input=text, capture_output=True, timeout=self.time_limit_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ChildProcessError(
                f"Stanford's tokeniser took longer than {self.time_limit_s:g} s for {len(text):,} bytes"
            ) from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-500:]
            raise ChildProcessError(
                f"Stanford's tokeniser ended with status {done.returncode}: {said or 'no message'}"
            )
        return done.stdout.decode()

    def _without_punctuation(self, line: str) -> str:
        return " ".join(word for word in line.rstrip().split(" ") if word not in self.punctuation)


def _encoded(captions: Sequence[str]) -> bytes:
    """A line a caption."""
    try:
        return "".join(f"{text.translate(_LINE_ENDS)}\n" for text in captions).encode()
    except UnicodeEncodeError:
        # half of a surrogate pair, as JSON can hold one
        wrong = [text for text in captions if any("\ud800" <= sign <= "\udfff" for sign in text)]
        raise ValueError(
            f"{len(wrong)} captions hold half a surrogate pair, which is no character: {shown(wrong)}"
        ) from None
