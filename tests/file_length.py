"""The limit of 400 lines a file; `python -m tests.file_length` prints the files over it."""

import subprocess
import sys
from pathlib import Path

LIMIT = 400


def too_long(root: Path) -> list[str]:
    """Python files known to git (tracked, or new and not ignored) with more than 400 lines."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    lengths = {n: (root / n).read_text().count("\n") for n in listing if n and (root / n).is_file()}
    return [f"{n}: {k} lines (limit {LIMIT})" for n, k in lengths.items() if k > LIMIT]


if __name__ == "__main__":
    found = too_long(Path(__file__).resolve().parents[1])
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))
