"""Tokens of captions by Stanford's own tokeniser, which the official scorers of COCO run; `ptb` needs no Java.

The program is CoreNLP 3.4.1's PTBTokenizer inside the package pycocoevalcap (extra `captions`); it needs Java. The
options and the list of punctuation that is dropped afterwards are the official scorer's.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.eval.metrics.optional import optional_module
from emu.eval.metrics.ptb import one_line_each

_WRAPPER = "pycocoevalcap.tokenizer.ptbtokenizer"
_PROGRAM = "edu.stanford.nlp.process.PTBTokenizer"


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
            _WRAPPER, "captions", "Stanford's tokeniser (--tokeniser java) needs"
        )
        folder = Path(str(wrapper.__file__)).parent
        jar = folder / wrapper.STANFORD_CORENLP_3_4_1_JAR
        if not jar.is_file():
            raise FileNotFoundError(f"no {jar.name} in {folder}; install pycocoevalcap again")
        found = shutil.which(java)
        if found is None:
            raise FileNotFoundError(
                f"Stanford's tokeniser needs Java, and there is no program {java!r}: install a Java runtime, or use "
                "the tokeniser in Python (--tokeniser python, docs/metrics.md)"
            )
        return cls(Path(found), jar, frozenset(wrapper.PUNCTUATIONS))

    def __call__(self, captions: Sequence[str]) -> list[str]:
        """The tokens of each caption, in lower case and without punctuation.

        A caption's tokens can depend on the beginning of the next one, as they do in the official scorer.

        Raises ValueError for captions that are not Unicode text, ChildProcessError where the program fails.
        """
        if not captions:
            return []
        lines = self._run("\n".join(one_line_each(captions)).encode()).split("\n")
        if len(lines) != len(captions):
            raise ChildProcessError(
                f"Stanford's tokeniser gave {len(lines)} lines for {len(captions)} captions, so none can be "
                "told which tokens are its own"
            )
        return [self._without_punctuation(line) for line in lines]

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
