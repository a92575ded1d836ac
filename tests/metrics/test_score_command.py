"""The command for each metric: its table, its JSON, its errors."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from emu.eval.score import main
from tests.metrics.absent import hide_package
from tests.metrics.oracle import stanford_tokenizer
from tests.metrics.small_wordnet import write_wordnet


def write(folder: Path, name: str, value: object) -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def run(metric: str, predictions: Path, references: Path, *options: str) -> dict[str, dict]:
    output = predictions.parent / "out.json"
    arguments = [
        metric,
        "--predictions",
        str(predictions),
        "--references",
        str(references),
        "--output",
        str(output),
    ]
    main([*arguments, "--num-resamples", "20", *options])
    return {score["name"]: score for score in json.loads(output.read_text())["scores"]}


def test_coco_results_print_a_table_and_write_every_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    predictions = write(
        tmp_path,
        "p.json",
        [{"image_id": 1, "caption": "a dog runs"}, {"image_id": 2, "caption": "a cat"}],
    )
    captions = [(1, "a dog is running"), (1, "the dog runs"), (2, "a cat sits"), (2, "one cat")]
    references = write(
        tmp_path,
        "r.json",
        {"annotations": [{"id": 9, "image_id": i, "caption": c} for i, c in captions]},
    )
    scores = run("captions", predictions, references, "--pre-tokenized")
    assert list(scores) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    assert scores["ROUGE_L"]["samples"].keys() == {"1", "2"}
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["metric", "score", "95%", "interval", "samples"]
    assert [line.split()[0] for line in printed[1:7]] == list(scores)
    assert float(printed[5].split()[1]) == pytest.approx(scores["ROUGE_L"]["value"], abs=1e-6)


@pytest.mark.parametrize("metric", ["bleu", "rouge_l", "cider", "cider_d", "cider_unclipped"])
def test_single_caption_metrics_read_json_lines_and_csv(tmp_path: Path, metric: str):
    predictions = write(
        tmp_path,
        "p.jsonl",
        '{"image_id": 1, "caption": "a dog"}\n\n{"image_id": 2, "caption": "a cat"}\n',
    )
    references = write(tmp_path, "r.csv", "image_id,caption\n1,a dog\n2,a cat\n2,the cat\n")
    (score,) = run(metric, predictions, references, "--pre-tokenized").values()
    assert score["samples"].keys() == {"1", "2"}


def test_vqa_results_by_type_and_mode(tmp_path: Path):
    answers = [{"answer": "dog", "answer_id": index} for index in range(10)]
    annotation = {
        "question_id": 5,
        "answers": answers,
        "question_type": "what color",
        "answer_type": "other",
    }
    references = write(tmp_path, "r.json", {"annotations": [annotation]})
    predictions = write(tmp_path, "p.json", [{"question_id": 5, "answer": "The dog."}])
    assert run("vqa", predictions, references)["VQA accuracy"]["value"] == 0
    for metric in ("vqa_always_normalized", "vqa_released", "okvqa", "textvqa"):
        (score,) = run(metric, predictions, references).values()
        assert score["groups"] == {"question_type/what color": 100, "answer_type/other": 100}


def test_visdial_ranks_and_scores(tmp_path: Path):
    references = write(
        tmp_path,
        "r.json",
        [
            {"image_id": 7, "round_id": 1, "gt_index": 1},
            {"image_id": 7, "round_id": 2, "gt_index": 0, "gt_relevance": [1, 0]},
        ],
    )
    predictions = write(
        tmp_path,
        "p.json",
        [
            {"image_id": 7, "round_id": 1, "ranks": [2, 1]},
            {"image_id": 7, "round_id": 2, "scores": [0.1, 0.9]},
        ],
    )
    scores = run("visdial", predictions, references)
    assert scores["mrr"]["samples"] == {"7_1": 1, "7_2": 0.5}
    assert scores["ndcg"]["samples"] == {"7_2": pytest.approx(0)}


def test_nextqa_files_as_its_authors_write_them(tmp_path: Path):
    references = write(tmp_path, "r.csv", "video,qid,answer,type\n10,0,3,CW\n10,1,2,TP\n")
    predictions = write(
        tmp_path, "p.json", {"10_0": {"prediction": 3, "answer": 3}, "10_1": {"prediction": 1}}
    )
    score = run("nextqa", predictions, references)["NExT-QA accuracy"]
    assert (score["value"], score["groups"]) == (50, {"C": 100, "T": 0, "CW": 100, "TN": 0})


def test_open_answers_with_a_wordnet_folder(tmp_path: Path):
    wordnet = tmp_path / "wordnet"
    wordnet.mkdir()
    write_wordnet(wordnet)
    references = write(tmp_path, "r.csv", "video,qid,answer,type\n10,0,the dog,CW\n")
    predictions = write(tmp_path, "p.json", {"10": {"0": "dogs"}})
    options = [
        "--wordnet",
        str(wordnet),
        "--tagger",
        "rules",
        "--stop-words",
        str(write(tmp_path, "stop.txt", "the\n")),
    ]
    assert run("nextoe", predictions, references, *options)["WUPS"]["value"] == 100
    elsewhere = [*options, "--wordnet", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"WordNet 3\.0 is not in"):
        run("nextoe", predictions, references, *elsewhere)
    with pytest.raises(SystemExit, match="nextoe needs --stop-words FILE"):
        run("nextoe", predictions, references, *options[:4])


@pytest.mark.parametrize("metric", ["msvdqa", "msrvttqa"])
def test_one_word_answers(tmp_path: Path, metric: str):
    predictions = write(tmp_path, "p.json", {"1": "Dog.", "2": "cat"})
    references = write(
        tmp_path,
        "r.json",
        [{"id": 1, "answer": "dog", "question": "what"}, {"id": 2, "answer": "cow"}],
    )
    (score,) = run(metric, predictions, references).values()
    assert (score["value"], score["groups"]) == (50, {"what": 100})


def test_features_from_arrays(tmp_path: Path):
    features = np.random.default_rng(0).normal(size=(50, 4))
    for name, array in (("p.npy", features + 1), ("r.npy", features)):
        np.save(tmp_path / name, array)
    scores = run("frechet", tmp_path / "p.npy", tmp_path / "r.npy")
    assert scores["Frechet distance"]["value"] == pytest.approx(4)
    assert (
        run("kid", tmp_path / "p.npy", tmp_path / "r.npy", "--subset-size", "20")["KID"]["value"]
        > 0
    )


CAPTIONS = [{"image_id": 1, "caption": "a"}, {"image_id": 2, "caption": "b"}]


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (CAPTIONS[:1], "error: 1 of 2 references have no prediction .'2'."),
        ([*CAPTIONS, CAPTIONS[0]], "1 ids appear more than once: '1'"),
        ([*CAPTIONS, {"image_id": 3, "caption": "c"}], "1 of 3 predictions have no reference"),
        (
            [{"image_id": 1, "caption": None}, CAPTIONS[1]],
            "predictions: 1 values are not str: '1': None",
        ),
        ([{"image_id": 1, "caption": math.nan}, CAPTIONS[1]], "0.caption is NaN, which"),
        ([{"image_id": 1}], "record '1' has no caption"),
        ([{"caption": "a"}], "a record has no id"),
        (["a"], "1 entries are not objects"),
        ("[1,", "is not JSON"),
    ],
)
def test_bad_predictions_end_the_command_with_what_is_wrong(
    tmp_path: Path, predictions: object, message: str
):
    references = write(tmp_path, "r.json", CAPTIONS)
    with pytest.raises(SystemExit, match=message):
        run("captions", write(tmp_path, "p.json", predictions), references)


def test_captions_that_are_not_tokens_end_the_command(tmp_path: Path):
    references = write(tmp_path, "r.json", CAPTIONS)
    predictions = [{"image_id": 1, "caption": "a  dog "}, CAPTIONS[1]]
    with pytest.raises(SystemExit, match=r"1 captions are not tokens.*'a  dog '"):
        run("cider", write(tmp_path, "p.json", predictions), references, "--pre-tokenized")


def test_stanfords_program_needs_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hide_package("pycocoevalcap", monkeypatch)
    references = write(tmp_path, "r.json", CAPTIONS)
    with pytest.raises(SystemExit, match=r"error: .*pip install 'emu-platform\[captions\]'"):
        run("captions", references, references, "--tokenizer", "java")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("tokenizer", ["python", pytest.param("java", marks=pytest.mark.slow)])
def test_captions_are_tokenized_like_stanfords_program(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
):
    if tokenizer == "java":
        stanford_tokenizer()
    else:
        hide_package("pycocoevalcap", monkeypatch)
    texts = ["A dog, and a\nCat!", "It's 5 p.m."]
    references = write(
        tmp_path, "r.json", [{"image_id": i, "caption": text} for i, text in enumerate(texts)]
    )
    tokens = ["a dog and a cat", "it 's 5 p.m."]
    predictions = write(
        tmp_path, "p.json", [{"image_id": i, "caption": text} for i, text in enumerate(tokens)]
    )
    scores = run("rouge_l", predictions, references, "--tokenizer", tokenizer)
    assert scores["ROUGE_L"]["value"] == 1


def test_missing_files_and_unknown_suffixes_are_named(tmp_path: Path):
    references = write(tmp_path, "r.json", CAPTIONS)
    with pytest.raises(SystemExit, match=r"error: no file .*none\.json"):
        run("captions", tmp_path / "none.json", references)
    with pytest.raises(SystemExit, match=r"suffix '\.txt'; supported suffixes are"):
        run("captions", write(tmp_path, "p.txt", "x"), references)


def test_the_module_runs_and_does_not_load_torch_or_ray(tmp_path: Path):
    predictions = write(tmp_path, "p.json", CAPTIONS)
    code = (
        "import sys; from emu.eval.score import main; "
        f"files = ['--predictions', {str(predictions)!r}, '--references', {str(predictions)!r}]; "
        "main(['captions', '--pre-tokenized', *files]); "
        "print(sorted({'ray', 'torch', 'nltk', 'open_clip'} & set(sys.modules)))"
    )
    run_ = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run_.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "p.scores.json").is_file()
