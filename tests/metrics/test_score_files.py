"""Files in every documented format, and faults of files, which must not become a wrong mean."""

import json
from pathlib import Path

import numpy as np
import pytest

from emu.eval.score import main

CAPTIONS = [{"image_id": 1, "caption": "a dog runs"}, {"image_id": 2, "caption": "a cat"}]


def write(folder: Path, name: str, value: object) -> Path:
    path = folder / name
    if isinstance(value, bytes):
        path.write_bytes(value)
    else:
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def run(metric: str, predictions: Path, references: Path, *options: str) -> dict[str, dict]:
    output = predictions.parent / "out.json"
    files = ["--predictions", str(predictions), "--references", str(references)]
    main([metric, *files, "--output", str(output), "--num-resamples", "9", *options])
    return {score["name"]: score for score in json.loads(output.read_text())["scores"]}


def scored(folder: Path, metric: str, predictions: Path, references: object) -> dict[str, float]:
    (score, *_) = run(metric, predictions, write(folder, "r.json", references)).values()
    return score["samples"]


CAPTION_FILES = {
    "bom.json": b"\xef\xbb\xbf" + json.dumps(CAPTIONS).encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(one).encode() for one in CAPTIONS),
    "bom.csv": b"\xef\xbb\xbfimage_id,caption\r\n1,a dog runs\r\n\r\n2,a cat\r\n",
    "quoted.csv": b'caption,image_id\n"a ""dog"",\nruns",1\na cat,2\n',
    # a line ends at a line feed, not at separators inside a string
    "lines.jsonl": "\n".join(
        json.dumps({**one, "caption": f"{one['caption']}\u2028\x85"}, ensure_ascii=False)
        for one in CAPTIONS
    ).encode(),
    "wrapped.json": json.dumps({"info": {}, "annotations": CAPTIONS}).encode(),
    "ids.json": json.dumps({str(one["image_id"]): one["caption"] for one in CAPTIONS}).encode(),
}


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_captions_are_read_from_every_format(tmp_path: Path, name: str):
    predictions = write(tmp_path, name, CAPTION_FILES[name])
    assert scored(tmp_path, "rouge_l", predictions, CAPTIONS) == {"1": 1, "2": 1}


def test_cells_of_csv_hold_lists_of_numbers(tmp_path: Path):
    predictions = write(
        tmp_path, "p.csv", 'image_id,round_id,scores\n7,1,"[1, 2, 3]"\n7,2,"[3, 2, 1]"\n'
    )
    references = write(
        tmp_path,
        "r.csv",
        'image_id,round_id,gt_index,gt_relevance\n7,1,1,\n7,2,0,"[1, 0, 0]"\n',
    )
    scores = run("visdial", predictions, references)
    assert scores["mrr"]["samples"] == {"7_1": 0.5, "7_2": 1}
    assert scores["ndcg"]["samples"] == {"7_2": 1}


def test_dense_annotations_of_visdial_need_no_correct_answer(tmp_path: Path):
    predictions = write(tmp_path, "p.json", [{"image_id": 7, "round_id": 3, "ranks": [2, 1, 3]}])
    references = write(
        tmp_path, "r.json", [{"image_id": 7, "round_id": 3, "gt_relevance": [0, 0.5, 0]}]
    )
    scores = run("visdial", predictions, references)
    assert {name: score["samples"] for name, score in scores.items()} == {"ndcg": {"7_3": 1}}


def test_cells_of_csv_hold_vqa_answers_and_vizwiz_identifies_images(tmp_path: Path):
    rows = 'question_id,answers,question_type\n5,"[""red"", ""red"", ""red"", ""red""]",\n'
    references = write(tmp_path, "r.csv", rows)
    predictions = write(tmp_path, "p.csv", "question_id,answer\n5,red\n")
    score = run("vqa", predictions, references)["VQA accuracy"]
    assert (score["samples"], score["groups"]) == ({"5": 1}, {})
    answers = [{"answer": "red", "answer_confidence": sure} for sure in ("yes", "no", "maybe")]
    vizwiz = [{"image": "a.jpg", "answers": answers, "answer_type": "other"}]
    predictions = write(tmp_path, "p.json", [{"image": "a.jpg", "answer": "red"}])
    assert scored(tmp_path, "vqa", predictions, vizwiz) == {"a.jpg": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    "predictions",
    [
        [{"id": 1, "answer": "dog", "prediction": "cat"}],
        {"1": {"answer": "dog", "prediction": "cat"}},
    ],
)
def test_the_correct_answer_beside_a_prediction_is_ignored(tmp_path: Path, predictions: object):
    path = write(tmp_path, "p.json", predictions)
    assert scored(tmp_path, "msvdqa", path, [{"id": 1, "answer": "dog"}]) == {"1": 0}


CAPTION_FAULTS = {
    "an unquoted comma": ("p.csv", "image_id,caption\n1,a dog, runs\n2,a cat\n", "line 2 has 3"),
    "a short row": ("p.csv", "image_id,caption\n1\n2,a cat\n", "1 rows do not have the 2 fields.*line 2 has 1"),
    "an open quote": ("p.csv", 'image_id,caption\n1,"a dog\n2,a cat\n', "line 3 is not valid CSV"),
    "a long field": ("p.csv", f"image_id,caption\n1,{'a' * 200_000}\n", "field larger than"),
    "a duplicate field": ("p.csv", "image_id,caption,caption\n1,a,b\n", "has a duplicate field: image_id, caption"),
    "semicolons": ("p.csv", "image_id;caption\n1;a\n", "separate the fields with commas"),
    "another line": ("p.jsonl", json.dumps(CAPTIONS[0]) + "\n\noops", "p.jsonl, line 3 is not JSON"),
    "lines as JSON": ("p.json", "{}\n{}", r"\.jsonl file one value per line"),
    "bytes": ("p.json", b'[{"image_id": 1, "caption": "caf\xe9"}]', "p.json is not UTF-8: byte 0xe9 at offset 32"),
    "a number": ("p.json", "5", "p.json has no list of objects"),
    "null": ("p.json", "null", "p.json has no list of objects"),
    "depth": ("p.json", "[" * 100_000, "nested too deeply"),
    "a float id": ("p.json", '[{"image_id": 1.0, "caption": "a"}]', "the image_id 1.0; ids are text or"),
    "no id": ("p.json", '[{"image_id": null, "caption": "a"}]', "the image_id None"),
    "a duplicate key": ("p.json", '{"1": "a dog", "1": "a cat"}', "p.json: 1 appears twice in the same object"),
    "ids that join": ("p.json", '{"1_2": "a", "1": {"2": "b"}}', "1 ids appear more than once: '1_2'"),
    "text and number": (
        "p.json",
        [*CAPTIONS, {"image_id": "1", "caption": "a"}],
        "1 ids appear more than once: '1'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", CAPTION_FAULTS)
def test_faults_of_files_are_named_with_their_location(tmp_path: Path, fault: str):
    name, text, message = CAPTION_FAULTS[fault]
    references = write(tmp_path, "r.json", CAPTIONS)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        run("bleu", write(tmp_path, name, text), references)
    assert not (tmp_path / "out.json").exists()


OTHER_FAULTS = [
    ("visdial", '[{"id": 1, "ranks": [1, 1, 3]}]', "'1': ranks are not 1 to 3, each once"),
    ("visdial", '[{"id": 1, "ranks": [0, 1, 2]}]', "ranks are not 1 to 3"),
    ("visdial", '[{"id": 1, "scores": [true, 1, 2]}]', "1 values that are not numbers: True"),
    ("visdial", f'[{{"id": 1, "scores": [1{"0" * 400}, 1, 2]}}]', "beyond 1e308"),
    ("nextqa", '{"1": 1.0}', "the prediction of '1' is 1.0; it must be a whole number"),
    ("nextqa", '{"1": "x"}', "the prediction of '1' is 'x'"),
    ("vqa", '{"1": 5}', "predictions: 1 values are not str: '1': 5"),
]
REFERENCES = {
    "visdial": [{"id": 1, "gt_index": 1}],
    "nextqa": [{"id": 1, "answer": 1, "type": "CW"}],
    "vqa": [{"id": 1, "answers": ["a", "b"]}],
}


@pytest.mark.parametrize(("metric", "predictions", "message"), OTHER_FAULTS)
def test_predictions_that_cannot_be_scored_are_named(
    tmp_path: Path, metric: str, predictions: str, message: str
):
    references = write(tmp_path, "r.json", REFERENCES[metric])
    with pytest.raises(SystemExit, match=message):
        run(metric, write(tmp_path, "p.json", predictions), references)


REFERENCE_FAULTS = [
    ("visdial", {"gt_index": None}, "gt_index is None; it must be a whole number"),
    ("visdial", {"gt_relevance": None}, "record '1' has no gt_index or target"),
    ("visdial", {"gt_index": None, "gt_relevance": [1, 0, 0]}, "gt_index is None"),
    ("visdial", {"gt_index": 1.7}, "gt_index is 1.7"),
    ("visdial", {"gt_index": 1, "gt_relevance": 5}, "gt_relevance is 5; it must be a list"),
    ("visdial", {"gt_index": 1, "gt_relevance": [[1], 0, 0]}, r"not numbers: \[1\]"),
    ("visdial", {"gt_index": 1, "gt_relevance": [0, 0, 0]}, "no relevant candidate.*'1'"),
    ("nextqa", {"answer": None, "type": "CW"}, "the answer of '1' is None"),
    ("nextqa", {"answer": 2.5, "type": "CW"}, "the answer of '1' is 2.5"),
    ("vqa", {"answers": None}, "the answers of question '1' is None; it must be a list"),
    ("vqa", {"answers": [None, "a"]}, r"question '1' are neither all text.*\[null\]"),
    ("vqa", {"answers": ["a", {"answer": "b"}]}, "neither all text nor all objects"),
    ("vqa", {"answers": "[a"}, "question '1' is not JSON"),
    ("vqa", {"answer": "red"}, "no question has more than one answer"),
    ("msvdqa", {"answer": "dog", "question": 5}, "questions: 1 values are not str: '1': 5"),
]
PREDICTIONS = {
    "visdial": [{"id": 1, "scores": [1, 2, 3]}],
    "nextqa": {"1": 1},
    "vqa": {"1": "red"},
    "msvdqa": {"1": "dog"},
}


@pytest.mark.parametrize(("metric", "fields", "message"), REFERENCE_FAULTS)
def test_references_that_cannot_be_scored_are_named(
    tmp_path: Path, metric: str, fields: dict[str, object], message: str
):
    predictions = write(tmp_path, "p.json", PREDICTIONS[metric])
    references = write(tmp_path, "r.json", [{"id": 1, **fields}])
    with pytest.raises(SystemExit, match=message):
        run(metric, predictions, references)


ARRAYS = {
    "not finite": (np.full((9, 4), np.nan), "features of 9 samples are not finite"),
    "too large": (np.full((9, 4), 1e200) * np.arange(9)[:, None], "not finite|exceeds 1e308"),
    "narrow": (np.ones((9, 3)), "widths differ"),
    "without width": (np.ones((9, 0)), r"shape \(9, 0\)"),
    "flat": (np.ones(9), r"shape \(9,\)"),
    "complex": (np.ones((9, 4)) * 1j, "complex128; they must be real"),
    "text": (np.full((9, 4), "1"), "must be real numbers"),
}


@pytest.mark.parametrize("metric", ["frechet", "kid"])
@pytest.mark.parametrize("fault", ARRAYS)
def test_features_that_cannot_be_scored_are_named(tmp_path: Path, metric: str, fault: str):
    array, message = ARRAYS[fault]
    np.save(tmp_path / "p.npy", array)
    np.save(tmp_path / "r.npy", np.random.default_rng(0).normal(size=(9, 4)))
    options = ["--subset-size", "5"] if metric == "kid" else []
    with pytest.raises(SystemExit, match=f"error: .*({message})"):
        run(metric, tmp_path / "p.npy", tmp_path / "r.npy", *options)


def test_a_truncated_array_is_named(tmp_path: Path):
    path = write(tmp_path, "p.npy", b"")
    with pytest.raises(
        SystemExit, match=r"p\.npy does not contain an array of numbers: No data left"
    ):
        run("frechet", path, path)


def test_scores_never_overwrite_an_input(tmp_path: Path):
    predictions = write(tmp_path, "val.csv", "image_id,caption\n1,a\n")
    # the name that the scores of val.csv have by default
    references = write(tmp_path, "val.scores.json", CAPTIONS[:1])
    files = ["bleu", "--predictions", str(predictions), "--references", str(references)]
    link = tmp_path / "link.json"
    link.symlink_to(predictions)
    for output in ([], ["--output", str(predictions)], ["--output", str(link)]):
        with pytest.raises(SystemExit, match="would overwrite the input"):
            main([*files, *output])
    assert json.loads(references.read_text()) == CAPTIONS[:1]
    assert predictions.read_text() == "image_id,caption\n1,a\n"


def test_an_output_without_a_folder_ends_the_command_before_the_work(tmp_path: Path):
    bad = write(tmp_path, "p.json", "[")
    for output in (tmp_path / "none" / "x.json", tmp_path):
        files = ["--predictions", str(bad), "--references", str(bad), "--output", str(output)]
        with pytest.raises(SystemExit, match=r"error: cannot write .*folder"):
            main(["bleu", *files])


def test_options_out_of_range_are_named(tmp_path: Path):
    path = write(tmp_path, "p.json", CAPTIONS)
    with pytest.raises(SystemExit, match="error: num_resamples is -1"):
        run("bleu", path, path, "--num-resamples", "-1")
