"""Stage `vae`: an AutoencoderKL, 64 x 64 RGB to 16 channels of 8 x 8."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from zimage_vl.toy.judging import judge
from zimage_vl.toy.world import ALL_SCENES, SIZE, draw_scene

from .loop import Run, train


STEPS, FINE_STEPS, BATCH, PICTURES = 2300, 2000, 16, 6000


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` drawn scenes: uint8 pixels (count, 3, 64, 64) and the index of each one's scene."""
    which = np.random.default_rng(seed).integers(0, len(ALL_SCENES), count)
    drawn = [np.asarray(draw_scene(ALL_SCENES[i], seed=seed * 1_000_003 + n)) for n, i in enumerate(which)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(which)


def to_model(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def to_image(values: Tensor) -> Image.Image:
    array = ((values.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array)


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=2,  # with more groups it cannot paint flat colour
        sample_size=SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def train_vae(run: Run) -> None:
    torch.manual_seed(run.seed)
    vae = new_vae().to(run.device)
    data, _ = pictures(PICTURES, seed=1)

    def losses(step: int, salt: int, kl: float) -> dict[str, Tensor]:
        rows = torch.randint(len(data), (BATCH,), generator=run.generator(salt, step))
        x = to_model(data[rows]).to(run.device)
        posterior = vae.encode(x).latent_dist
        restored = vae.decode(posterior.sample()).sample
        return {
            "l1": (restored - x).abs().mean(),
            "l2": (restored - x).square().mean(),
            # Means of 8 x 8 pixels: flat colour is what the group norms make hard.
            "flat": torch.nn.functional.avg_pool2d(restored - x, 8).abs().mean(),
            "kl": kl * posterior.kl().mean() / (16 * 8 * 8),
        }

    def rough(step: int) -> dict[str, Tensor]:
        parts = losses(step, 1, 2e-3)
        parts.pop("flat")
        return parts

    train(run, "vae", vae, rough, steps=run.steps(STEPS), lr=2e-3, betas=(0.9, 0.99), decay=0.995)
    # A second, gentler cycle with hardly any pull to the prior: the first leaves some colours apart.
    steps = run.steps(FINE_STEPS)
    log = train(
        run, "vae_fine", vae, lambda n: losses(n, 5, 1e-4), steps=steps, lr=1.2e-3, betas=(0.9, 0.99), decay=0.995
    )
    fresh, which = pictures(200, seed=2)
    with torch.no_grad():
        x = to_model(fresh).to(run.device)
        latents = vae.encode(x).latent_dist.mean
        restored = vae.decode(latents).sample
    shift, deviation = latents.mean().item(), latents.std().item()
    vae.register_to_config(scaling_factor=1 / deviation, shift_factor=shift)
    psnr = (10 * torch.log10(4 / (restored - x).square().mean())).item()
    right = np.mean(
        [all(judge(to_image(r)).matches(ALL_SCENES[i]).values()) for r, i in zip(restored, which, strict=True)]
    )
    vae.save_pretrained(run.path("vae"))
    run.finish(
        "vae",
        {"steps": run.steps(STEPS) + steps, "psnr_db": round(psnr, 2), "judged_right": float(right), "log": log[-1]},
    )


def load(run: Run) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(run.path("vae")).to(run.device).eval()
