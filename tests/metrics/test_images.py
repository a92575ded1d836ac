"""Fréchet and kernel distances against closed forms and scipy, CLIP scores and Inception features on tiny models."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from emu.eval.metrics.frechet import (
    FeatureStatistics,
    frechet_distance,
    gaussian_distance,
    kernel_distance,
    squared_discrepancy,
    statistics_of_batches,
)
from emu.eval.metrics.image_features import ClipEncoder, ClipScore, inception_features
from emu.eval.metrics.metric import Bootstrap
from tests.metrics.absent import hide_package

GENERATOR = np.random.default_rng(0)


def covariance(width: int, rank: int) -> np.ndarray:
    factor = GENERATOR.normal(size=(width, rank))
    return factor @ factor.T / rank


def test_one_dimension_is_the_closed_form():
    assert gaussian_distance([1.0], [[4.0]], [3.0], [[9.0]]) == pytest.approx(
        4 + (2 - 3) ** 2, abs=1e-12
    )


def test_diagonal_covariances_are_the_closed_form():
    first, second = GENERATOR.random(20), GENERATOR.random(20)
    expected = ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert gaussian_distance(
        np.zeros(20), np.diag(first), np.zeros(20), np.diag(second)
    ) == pytest.approx(expected, abs=1e-9)


def test_full_covariances_agree_with_scipys_root():
    first, second = covariance(48, 200), covariance(48, 200)
    means = GENERATOR.normal(size=(2, 48))
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(first + second - 2 * root)
    assert gaussian_distance(means[0], first, means[1], second) == pytest.approx(expected, abs=1e-6)


def test_singular_covariances_have_an_exact_distance():
    # 10 directions of 64: a general matrix root is unstable here; in the span the distance is a smaller full one
    basis = np.linalg.qr(GENERATOR.normal(size=(64, 10)))[0]
    first, second = covariance(10, 40), covariance(10, 40)
    zero = np.zeros(64)
    large = gaussian_distance(zero, basis @ first @ basis.T, zero, basis @ second @ basis.T)
    assert large == pytest.approx(gaussian_distance(zero[:10], first, zero[:10], second), abs=1e-6)
    assert gaussian_distance(
        zero, basis @ first @ basis.T, zero, basis @ first @ basis.T
    ) == pytest.approx(0, abs=1e-6)
    assert gaussian_distance(zero, np.zeros((64, 64)), zero, np.zeros((64, 64))) == 0


def test_streamed_and_merged_statistics_are_those_of_all_features():
    # a large common offset is where sums of squares lose their digits
    features = GENERATOR.normal(size=(1000, 12)) + 1e6
    streamed = statistics_of_batches(np.array_split(features, 7), 12)
    left, right = (
        statistics_of_batches(np.array_split(features[:300], 3), 12),
        FeatureStatistics.of(features[300:]),
    )
    for statistics in (
        streamed,
        left.merged(right),
        right.merged(left),
        FeatureStatistics.empty(12).merged(streamed),
    ):
        assert statistics.count == 1000
        np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-12)
        np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), atol=1e-8)


def test_distance_of_features_is_zero_to_themselves_and_the_shift_squared():
    features = GENERATOR.normal(size=(200, 8))
    statistics = FeatureStatistics.of(features)
    assert frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(statistics, FeatureStatistics.of(features + 2)) == pytest.approx(
        8 * 4, abs=1e-9
    )


def test_kernel_distance_is_the_definition_and_near_zero_for_one_distribution():
    first, second = GENERATOR.normal(size=(6, 4)), GENERATOR.normal(size=(5, 4)) + 1
    kernel = lambda x, y: (x @ y / 4 + 1) ** 3  # noqa: E731
    within = [
        np.mean([kernel(x, y) for i, x in enumerate(one) for j, y in enumerate(one) if i != j])
        for one in (first, second)
    ]
    between = np.mean([kernel(x, y) for x in first for y in second])
    assert squared_discrepancy(first, second) == pytest.approx(sum(within) - 2 * between)
    same = kernel_distance(*GENERATOR.normal(size=(2, 500, 16)), num_subsets=20, subset_size=100)
    assert abs(same.mean) < 3 * same.deviation


def test_bad_features_are_named():
    with pytest.raises(ValueError, match="features of 1 samples are not finite"):
        FeatureStatistics.of([[1.0], [np.nan]])
    with pytest.raises(ValueError, match=r"shape \(2,\); they must be"):
        FeatureStatistics.of([1.0, 2.0])
    with pytest.raises(ValueError, match="at least 2 samples; there are 1"):
        frechet_distance(FeatureStatistics.of([[1.0]]), FeatureStatistics.of([[1.0]]))
    with pytest.raises(ValueError, match="widths 1 and 2"):
        FeatureStatistics.of([[1.0]]).merged(FeatureStatistics.of([[1.0, 2.0]]))
    with pytest.raises(ValueError, match="symmetric"):
        gaussian_distance([0, 0], [[1, 1], [0, 1]], [0, 0], np.eye(2))
    with pytest.raises(ValueError, match="must not have negative eigenvalues"):
        gaussian_distance([0, 0], [[1, 0], [0, -1]], [0, 0], np.eye(2))
    with pytest.raises(ValueError, match="subset_size is 10"):
        kernel_distance(np.ones((5, 2)), np.ones((20, 2)), subset_size=10)


def test_means_and_covariances_of_other_widths_are_named():
    with pytest.raises(ValueError, match=r"means of \(3,\) and \(3,\), covariances of \(2,\)"):
        gaussian_distance([0, 0, 0], np.eye(2), [0, 0, 0], np.eye(2))
    with pytest.raises(ValueError, match="a mean is not finite"):
        gaussian_distance([np.nan, 0], np.eye(2), [0, 0], np.eye(2))
    with pytest.raises(ValueError, match="num_subsets is 0"):
        kernel_distance(np.ones((5, 2)), np.ones((5, 2)), num_subsets=0, subset_size=5)


def test_clip_score_is_the_mean_of_positive_cosines():
    images = {"a": [1.0, 0], "b": np.array([0, 2.0]), "c": [1.0, 0]}
    texts = {"c": [-1.0, 0], "a": [3.0, 0], "b": [1.0, 1.0]}
    score = ClipScore(bootstrap=Bootstrap(0))(images, texts)
    assert score.samples == pytest.approx({"a": 1, "b": 0.5**0.5, "c": 0})
    alone = ClipScore(2.5, Bootstrap(0))({"a": images["a"]}, {"a": texts["a"]})
    assert alone.value == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        ({"a": [0.0, 0]}, {"a": [1.0, 0]}, "no direction"),
        ({"a": [math.nan, 0]}, {"a": [1.0, 0]}, "not finite"),
        ({"a": [1.0, 0]}, {"a": [1.0]}, r"shapes \[\(1,\), \(2,\)\]; all must be"),
        ({"a": 1.0}, {"a": 1.0}, r"shapes \[\(\)\]"),
        ({"a": [1.0]}, {"b": [1.0]}, "1 of 1 references have no prediction .'b'."),
        ({}, {}, "nothing to score"),
    ],
)
def test_embeddings_that_do_not_pair_are_named(images: dict, texts: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ClipScore()(images, texts)


def test_clip_embeddings_come_from_a_file_of_weights(tmp_path: Path):
    import open_clip
    import torch

    tower = {"width": 16, "layers": 1, "heads": 2}
    config = {
        "embed_dim": 8,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 16,
            "layers": 1,
            "width": 16,
            "head_width": 8,
        },
        "text_cfg": {"context_length": 16, "vocab_size": 49408, **tower},
    }
    (tmp_path / "tiny-emu-test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-emu-test.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-emu-test")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    encoder = ClipEncoder.load("tiny-emu-test", tmp_path / "weights.pt")
    pixels = GENERATOR.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    images = encoder.images([Image.fromarray(pixels), Image.new("RGB", (50, 60), "red")])
    texts = encoder.texts(["a dog", "a red square"])
    assert images.shape == texts.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1)
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer("tiny-emu-test")(["a dog", "a red square"])
        expected = model.eval().encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(texts, expected, atol=1e-6)
    with pytest.raises(FileNotFoundError, match=r"no weights at .*missing\.pt"):
        ClipEncoder.load("tiny-emu-test", tmp_path / "missing.pt")


def test_without_torch_fidelity_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hide_package("torch_fidelity", monkeypatch)
    with pytest.raises(ModuleNotFoundError, match=r"torch_fidelity; .*'emu-platform\[fid\]'"):
        inception_features(tmp_path / "none.pth")


def test_missing_inception_weights_say_which_file_is_needed(tmp_path: Path):
    pytest.importorskip("torch_fidelity", reason="needs the extra fid")
    with pytest.raises(FileNotFoundError, match="weights-inception-2015-12-05-6726825d"):
        inception_features(tmp_path / "none.pth")


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_files_that_are_no_weights_are_named(tmp_path: Path, content: bytes | None):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(1)}, path)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth does not contain the weights of 'RN50'"):
        ClipEncoder.load("RN50", path)
    with pytest.raises(ValueError, match="open_clip has no model 'RN5'"):
        ClipEncoder.load("RN5", path)
    pytest.importorskip("torch_fidelity", reason="needs the extra fid")
    with pytest.raises(
        ValueError, match="does not contain the weights of torch-fidelity's Inception"
    ):
        inception_features(path)


@pytest.mark.slow
def test_inception_features_come_from_a_file_of_weights(tmp_path: Path):
    torch = pytest.importorskip("torch")
    library = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="needs the extra fid"
    )

    class Untrained(library.FeatureExtractorInceptionV3):
        """The network with the weights it was made with."""

        def load_state_dict(self, state_dict, *arguments, **others):
            del state_dict, arguments, others

    torch.save({}, tmp_path / "empty.pth")
    torch.manual_seed(0)
    network = Untrained("inception-v3-compat", ["2048"], str(tmp_path / "empty.pth"))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    features = inception_features(tmp_path / "weights.pth")
    images = GENERATOR.integers(0, 256, (2, 3, 64, 48), dtype=np.uint8)
    found = features(images)
    assert found.shape == (2, 2048)
    np.testing.assert_array_equal(found, network(torch.from_numpy(images))[0].double().numpy())
    with pytest.raises(ValueError, match="must be uint8"):
        features(images.astype(np.float32))  # type: ignore[arg-type]
