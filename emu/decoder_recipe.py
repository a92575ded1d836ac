"""The options of the training of a visual decoder. No torch here, so that command lines answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from emu.config import Count, Positive, Prediction
from emu.recipes import Decay, OptimConfig, Precision, Ratio, TrainConfig
from schemas.validation import Checked

Schedule = Literal["cosine", "staged"]
ConditionKind = Literal["autoregressive", "teacher_forced"]


@dataclass(frozen=True)
class DecoderTrainConfig(Checked):
    """Length and learning rates of the training of a visual decoder; the defaults are for small sizes from scratch."""

    steps: Count = 1000
    """Optimizer steps of the decoder (paper: 15000)."""
    autoencoder_steps: Annotated[int, Field(ge=0)] = 300
    """Optimizer steps of the autoencoder before; not used with pretrained weights."""
    batch_size: Count = 8
    """Images per step over all workers (paper: 1600)."""
    micro_batch_size: Count | None = None
    """Images of a worker whose gradients are computed at once; the others of its share follow. None: all."""
    autoencoder_batch_size: Count = 4
    """Images per step of the autoencoder."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of the decoder. The paper's, for Stable Diffusion's weights, is 1e-4."""
    autoencoder_learning_rate: Positive = 2e-3
    """Peak learning rate of the autoencoder."""
    schedule: Schedule = "cosine"
    """cosine: after the warm-up the rate decays along a cosine to zero.
    staged: the paper's; a warm-up over a third of the steps, half the rate from two thirds, a tenth from 14/15 on."""
    warmup_ratio: Ratio = 0.1
    """Fraction of the steps with linear warm-up, for the schedule cosine and the autoencoder."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of AdamW's running means of the gradient and its square (the paper's)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of AdamW (the paper's)."""
    clip_norm: Positive = 1.0
    """Gradients are clipped to this norm (our choice; the paper does not say)."""
    conditions: ConditionKind = "autoregressive"
    """autoregressive: the model regresses the embeddings of an image one after the other, once per prompt.
    teacher_forced: it predicts each from those of the real image before it; cheap, once per image."""
    drop_probability: Ratio = 0.1
    """Fraction of the conditions replaced by that of the empty prompt, for guidance."""
    prediction: Prediction | None = None
    """What a U-Net from scratch predicts: the noise (epsilon, the paper), v, or the clean image (sample).
    None: as in the model's configuration."""
    snr_gamma: Positive | None = None
    """Bound of the signal-to-noise ratio in the weights of the loss (min-SNR). None: as in the configuration."""
    contrast_weight: Annotated[float, Field(ge=0)] | None = None
    """Weight of what differs from the mean of its image, for pixel_diffusion. None: as in the configuration."""
    noise_shift: Positive | None = None
    """Factor on the ratio of noise to signal at every time. None: as in the model's configuration."""
    precision: Precision = "float32"
    """Precision of matrix products. bfloat16: under autocast; weights and optimizer state stay float32."""
    seed: int = 0
    """Seed of initial weights, order of images, times and noise."""
    checkpoint_every: Count = 500
    """Steps between checkpoints; one more is written at the end."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints that are kept."""
    log_every: Count = 10
    """Steps between lines of metrics."""
    num_threads: Annotated[int, Field(ge=0)] = 1
    """Threads per worker that decode the images of the next step; 0: the main thread does, between steps."""
    held_out: Annotated[float, Field(ge=0, lt=1, description="a fraction")] = 0.0
    """Share of the images, by the hash of their samples' keys, that no step reads; for validation losses."""
    validate_every: Count = 500
    """Steps between validations on held-out images; the last step has one too."""
    validation_samples: Count = 64
    """Held-out images of each corpus that a validation reads, at most."""
    max_bad_samples: Annotated[int, Field(ge=0)] = 32
    """Images in a row that do not decode and are left out; one more ends the run."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 4
    """Steps in a row whose loss or gradient is not finite that are skipped; one more ends the run."""

    def run(self, steps: int, batch_size: int, learning_rate: float) -> TrainConfig:
        """What the training loop needs to know of one of the two trainings."""
        return TrainConfig(
            steps=steps,
            batch_size=batch_size,
            precision=self.precision,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
            log_every=self.log_every,
            num_threads=self.num_threads,
            collapse_variance=0.0,
            held_out=self.held_out,
            validate_every=self.validate_every,
            validation_samples=self.validation_samples,
            max_bad_samples=self.max_bad_samples,
            max_skipped_steps=self.max_skipped_steps,
            optim=OptimConfig(
                language_lr=learning_rate,
                betas=self.betas,
                eps=1e-8,
                weight_decay=self.weight_decay,
                clip_norm=self.clip_norm,
                warmup_ratio=self.warmup_ratio,
            ),
        )


@dataclass(frozen=True)
class PromptRules(Checked):
    """Which images the visual decoder trains on."""

    max_prompt_length: Count = 150
    """Maximum length of a prompt in characters; images with longer ones are left out (paper: 150)."""
    max_images: Count = 1_000_000_000
    """Maximum number of images of a dataset, the first ones."""
