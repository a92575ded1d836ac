"""The official scorers of captions, if Java and pycocoevalcap are installed."""

from collections.abc import Mapping, Sequence

import pytest

from emu.eval.metrics.ptb import StanfordTokenizer


def stanford_tokenizer() -> StanfordTokenizer:
    """Stanford's tokenizer; skips the test if it cannot run."""
    try:
        return StanfordTokenizer.find()
    except (ModuleNotFoundError, FileNotFoundError) as missing:
        pytest.skip(str(missing))


def official_tokens(captions: Sequence[str]) -> list[str]:
    """Tokens by the official wrapper, each caption as its own image."""
    wrapper = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    found = wrapper.PTBTokenizer().tokenize(
        {index: [{"caption": text}] for index, text in enumerate(captions)}
    )
    return [found[index][0] for index in range(len(captions))]


def official_scores(
    candidates: Mapping[object, str], references: Mapping[object, Sequence[str]]
) -> dict[str, tuple[float, list[float]]]:
    """The official score and sample scores of token strings; skips the test without pycocoevalcap."""
    scorers = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="needs pycocoevalcap")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    right = {key: list(references[key]) for key in references}
    given = {key: [candidates[key]] for key in references}
    bleu, bleus = scorers.Bleu(4).compute_score(right, given, verbose=0)
    rouge, rouges = Rouge().compute_score(right, given)
    cider, ciders = Cider().compute_score(right, given)
    scores = {f"Bleu_{order + 1}": (bleu[order], list(bleus[order])) for order in range(4)}
    return {
        **scores,
        "ROUGE_L": (float(rouge), rouges.tolist()),
        "CIDEr": (float(cider), ciders.tolist()),
    }
