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
ConditionPrecision = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class DecoderTrainConfig(Checked):
    """Length and learning rates of a visual decoder's training. The defaults suit small sizes from scratch."""

    steps: Count = 1000
    """Optimizer steps of the decoder (paper: 15000)."""
    autoencoder_steps: Annotated[int, Field(ge=0)] = 300
    """Optimizer steps of the autoencoder, which is trained first. Not used with pretrained weights."""
    batch_size: Count = 8
    """Images per step over all workers (paper: 1600)."""
    micro_batch_size: Count | None = None
    """Images per worker in one forward and backward pass; gradients are accumulated. None: all of its share."""
    autoencoder_batch_size: Count = 4
    """Images per step of the autoencoder."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of the decoder. The paper uses 1e-4, with Stable Diffusion's weights."""
    autoencoder_learning_rate: Positive = 2e-3
    """Peak learning rate of the autoencoder."""
    schedule: Schedule = "cosine"
    """cosine: after the warm-up, the learning rate decays to zero along a cosine.
    staged: as in the paper. Warm-up over the first third of the steps, half the peak from 2/3, a tenth from 14/15."""
    warmup_ratio: Ratio = 0.1
    """Fraction of the steps with linear warm-up, for the cosine schedule and the autoencoder."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Exponential decay rates of AdamW's first and second moment estimates (as in the paper)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of AdamW (as in the paper)."""
    clip_norm: Positive = 1.0
    """Maximum norm of the gradient (our choice; the paper gives none)."""
    conditions: ConditionKind = "autoregressive"
    """autoregressive: the model regresses the embeddings of an image one after another, once per prompt.
    teacher_forced: it predicts each from those of the real image before it. Cheaper; once per image."""
    condition_precision: ConditionPrecision = "float32"
    """Precision in which the conditions are kept in OUT/conditions. float16 and bfloat16 take half the disk.
    float16 rounds each value by at most 1 part in 2048, bfloat16 by 1 in 256."""
    drop_probability: Ratio = 0.1
    """Fraction of the conditions replaced by the one of the empty prompt, for classifier-free guidance."""
    prediction: Prediction | None = None
    """Target of a U-Net from scratch: the noise (epsilon, as in the paper), v, or the clean image (sample).
    None: as in the model's configuration."""
    snr_gamma: Positive | None = None
    """Upper bound of the signal-to-noise ratio in the loss weights (min-SNR). None: as in the configuration."""
    contrast_weight: Annotated[float, Field(ge=0)] | None = None
    """For pixel_diffusion: extra loss weight of pixels that differ from the mean of their image.
    None: as in the configuration."""
    noise_shift: Positive | None = None
    """Factor on the noise-to-signal ratio at every time. None: as in the model's configuration."""
    precision: Precision = "float32"
    """Precision of matrix products. bfloat16: autocast; weights and optimizer state stay float32."""
    peak_tflops: Positive | None = None
    """Peak of the processor of a worker in TFLOP/s, for the MFU in the log. None: that of known GPUs in bfloat16."""
    seed: int = 0
    """Seed of initial weights, image order, times and noise."""
    checkpoint_every: Count = 500
    """Steps between checkpoints. One more is written at the end."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints to keep."""
    log_every: Count = 10
    """Steps between lines of metrics."""
    num_threads: Annotated[int, Field(ge=0)] = 1
    """Threads per worker that decode the images of the next step. 0: decode in the main thread, between steps."""
    held_out: Annotated[float, Field(ge=0, lt=1, description="a fraction")] = 0.0
    """Fraction of the images, 0 to 1, held out of training for validation losses; the hash of a key decides."""
    validate_every: Count = 500
    """Steps between validations on held-out images. One more follows the last step."""
    validation_samples: Count = 64
    """Maximum number of held-out images per corpus and validation."""
    max_bad_samples: Annotated[int, Field(ge=0)] = 32
    """Leave out at most this number of undecodable images in a row. One more ends the run."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 4
    """Skip at most this number of steps in a row whose loss or gradient is not finite.
    One more ends the run."""

    def run(self, steps: int, batch_size: int, learning_rate: float) -> TrainConfig:
        """What the training loop needs to know of one of the two trainings."""
        return TrainConfig(
            steps=steps,
            batch_size=batch_size,
            precision=self.precision,
            peak_tflops=self.peak_tflops,
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
    """Maximum prompt length in characters. Images with longer prompts are left out (paper: 150)."""
    max_images: Count = 1_000_000_000
    """Maximum number of images of a dataset; the first ones are used."""
