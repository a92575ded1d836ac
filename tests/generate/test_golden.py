"""The published code's answers on the released architecture at small size."""

import numpy as np
import torch

from emu.generate.prompts import ImageOptions, TextOptions
from tests.generate.conftest import Golden


def test_generated_ids_are_those_of_the_published_code(golden: Golden) -> None:
    images = list(golden.expected["pixel_values"])
    texts = golden.meta["prompts"]
    prompts = [golden.pieces(t, [image]) for t, image in zip(texts, images, strict=True)]
    expected = golden.meta["generated_ids"]

    assert golden.engine.generate_ids(prompts, TextOptions(max_new_tokens=12)) == expected["greedy"]
    beams = golden.engine.generate_ids(prompts, TextOptions(max_new_tokens=12, num_beams=5))
    assert beams == expected["beam5"]
    example = golden.pieces(golden.meta["in_context_prompt"], images)
    beams = golden.engine.generate_ids([example], TextOptions(max_new_tokens=12, num_beams=5))
    assert beams == expected["in_context_beam5"]


def test_candidates_rank_as_in_the_published_code(golden_instruct: Golden) -> None:
    meta, expected = golden_instruct.meta, golden_instruct.expected
    for number, candidates in enumerate(meta["candidates"]):
        image = expected["pixel_values"][number]
        prompt = golden_instruct.pieces(meta["prompts"][number], [image])
        ranks = golden_instruct.engine.rank(prompt, candidates)
        assert ranks == expected["candidate_ranks"][number].tolist()


def test_regressed_images_are_those_of_the_published_code(golden_pretrain: Golden) -> None:
    engine, expected = golden_pretrain.engine, golden_pretrain.expected
    prompts = golden_pretrain.meta["image_prompts"]

    texts = engine.regress_image(prompts["text"])
    assert (texts - expected["image_embeds_text"]).abs().max() < 1e-4
    first, between, after = prompts["blend"][0].split("[<IMG_PLH>]")
    one, other = expected["pixel_values"][:2]
    blend = engine.regress_image([[first, one, between, other, after]])
    assert (blend - expected["image_embeds_blend"]).abs().max() < 1e-4


def test_the_image_is_that_of_the_published_code(golden_pretrain: Golden) -> None:
    call, expected = golden_pretrain.meta["decoder"], golden_pretrain.expected
    image = golden_pretrain.engine.generate_image(
        call["prompt"],
        ImageOptions(
            call["height"],
            call["width"],
            num_inference_steps=call["num_inference_steps"],
            guidance_scale=call["guidance_scale"],
        ),
        initial_latents=expected["decoder_initial_latents"],
    )
    levels = torch.from_numpy(np.asarray(image).astype(int))
    assert (levels - expected["decoder_image_uint8"].int()).abs().max() <= 1
