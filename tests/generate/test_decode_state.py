"""Decoding over one KV cache equals running the whole sequence for each step."""

import torch
from PIL import Image

from emu.generate.engine import Engine
from emu.generate.kv_cache import DecodeState
from emu.generate.prompts import EncodedPrompt, Prompt, TextOptions

PROMPTS: list[Prompt] = ["a red circle", "a", "what colour is the triangle in the picture?"]

# Each step is fed with the one before it, so rounding errors grow to some 1e-5; a position off gives 0.3.
TOLERANCE = 1e-4


def recomputed_image(engine: Engine, prompt: EncodedPrompt) -> torch.Tensor:
    """The plain loop: the whole sequence is run for every embedding."""
    model = engine.model
    images = model.encode_images(torch.stack(prompt.pixels)) if prompt.pixels else None
    inputs_BLD = model.embed(torch.tensor([prompt.ids]), images)
    regressed: list[torch.Tensor] = []
    for _ in range(model.config.former.num_queries):
        whole_BLD = torch.cat([inputs_BLD, *[e[:, None] for e in regressed]], dim=1)
        regressed.append(model.language.regress(model.language(whole_BLD)[:, -1]))
    return torch.stack(regressed, dim=1)


def test_visual_steps_agree_with_the_plain_loop(engine: Engine, photo: Image.Image) -> None:
    prompts = [*PROMPTS, ["like ", photo, " but blue"], ""]
    batched = engine.regress_image(prompts)
    assert batched.shape == (5, 8, engine.config.language.hidden_size)
    with torch.inference_mode():
        for row, prompt in enumerate(prompts):
            alone = recomputed_image(engine, engine.encode(prompt, opens_image=True))
            assert (batched[row] - alone[0]).abs().max() < TOLERANCE


def test_text_after_an_image_agrees_with_a_fresh_run(engine: Engine) -> None:
    model = engine.model
    with torch.inference_mode():
        state = DecodeState(model, [engine.encode(p, opens_image=True) for p in PROMPTS])
        generated = state.regress_image()
        state.close_image(generated)
        state.feed_ids([20, 21, 22])
        for row, prompt in enumerate(PROMPTS):
            special, num_queries = model.config.special, model.config.former.num_queries
            ids = [*engine.encode(prompt, opens_image=True).ids, *[special.image] * num_queries]
            ids += [special.image_end, 20 + row]
            inputs_BLD = model.embed(torch.tensor([ids]), generated[row : row + 1])
            alone = model.language(inputs_BLD)[0, -1]
            assert (state.hidden_BD[row] - alone).abs().max() < TOLERANCE


def test_rows_do_not_depend_on_their_neighbours(engine: Engine, photo: Image.Image) -> None:
    prompts = [*PROMPTS, [photo, "describe the image"], [photo, photo]]
    # with five beams no two candidates for a place are within rounding of each other (with three, two are)
    for options in ({}, {"num_beams": 5}, {"do_sample": True, "temperature": 2.0}):
        together = engine.generate_ids(prompts, TextOptions(max_new_tokens=10, **options, seed=0))
        alone = [
            engine.generate_ids([prompt], TextOptions(max_new_tokens=10, **options, seed=row))[0]
            for row, prompt in enumerate(prompts)
        ]
        assert together == alone


def test_selected_rows_continue_as_if_alone(engine: Engine) -> None:
    with torch.inference_mode():
        state = DecodeState(engine.model, [engine.encode(p) for p in PROMPTS])
        state.select([2, 0, 2])
        state.feed_ids([7, 8, 9])
        for row, (prompt, token) in enumerate([(2, 7), (0, 8), (2, 9)]):
            alone = DecodeState(engine.model, [engine.encode(PROMPTS[prompt])])
            alone.feed_ids([token])
            assert (state.hidden_BD[row] - alone.hidden_BD[0]).abs().max() < TOLERANCE
