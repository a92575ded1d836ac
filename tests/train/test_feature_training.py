"""Training on float32 features is training with the frozen visual encoder in place, bit for bit."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from emu.models.visual import normalise, preprocessing
from emu.recipes import Precision
from emu.train.feature_encoders import FeatureEncoder
from emu.train.loop import train
from emu.train.run_folder import read_metrics
from emu.train.start import start_tower
from pipelines.core.run import extend
from pipelines.transforms.features import FeatureStage
from schemas.features import FeatureInfo
from tests.train.plans import are_equal, mini_plan, weights_of


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_are_equal_to_those_with_the_tower_in_place(precision: Precision, tmp_path: Path):
    plan = mini_plan(tmp_path, freeze_vision=True, precision=precision)
    tower, vision = start_tower(plan.model, plan.train.seed, None), plan.model.vision
    words = preprocessing(vision.image_size)
    encoder = FeatureEncoder(
        tower, partial(normalise, side=vision.image_size), words, precision, with_tokens=True
    )
    info = FeatureInfo(
        "tower",
        encoder.weights_sha256,
        words,
        precision,
        vision.embed_dim,
        vision.num_tokens,
        vision.width,
        "float32",
    )
    extend(FeatureStage(info, lambda: encoder, batch_size=5), plan.data, progress=False)
    in_place, on_features = plan, replace(plan, out=f"{plan.out}_features", use_features=True)
    for one in (in_place, on_features):
        train(one)
    assert are_equal(
        weights_of(Path(in_place.out) / "model"), weights_of(Path(on_features.out) / "model")
    )
    losses = [
        [row["loss"] for row in read_metrics(Path(one.out))] for one in (in_place, on_features)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 6 and losses[0][0] != losses[0][-1]
