"""A WordNet of a dozen words in the format of the database files (wndb(5WN))."""

from pathlib import Path

# hypernym by word, by part of speech
_TREES: dict[str, dict[str, str | None]] = {
    "noun": {
        "entity": None,
        "animal": "entity",
        "dog": "animal",
        "cat": "animal",
        "goose": "animal",
        "jump": "entity",
    },
    "verb": {"move": None, "walk": "move", "sleep": None, "jump": "move"},
    "adj": {"red": None},
    "adv": {"fast": None},
}
_LETTERS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}


def write_wordnet(folder: Path, version: str = "3.0") -> Path:
    """Writes the database files to the folder."""
    license_text = f"  1 Not a license, but in the position of one.  \n  2 WordNet {version} Copyright nobody.  \n"
    for pos, words in _TREES.items():
        letter = _LETTERS[pos]
        data, index = license_text, license_text
        offsets: dict[str, int] = {}
        for word, parent in words.items():
            # a sense is identified by the offset of its record in the file
            offsets[word] = len(data)
            pointers = f"001 @ {offsets[parent]:08d} {letter} 0000" if parent else "000"
            data += f"{offsets[word]:08d} 03 {letter} 01 {word} 0 {pointers} | a {word}\n"
            index += f"{word} {letter} 1 {int(parent is not None)} {'@ ' if parent else ''}1 0 {offsets[word]:08d}  \n"
        (folder / f"data.{pos}").write_text(data)
        (folder / f"index.{pos}").write_text(index)
        (folder / f"{pos}.exc").write_text("geese goose\n" if pos == "noun" else "")
    return folder
