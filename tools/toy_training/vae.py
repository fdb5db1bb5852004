"""Stage `vae`: an AutoencoderKL, 64 x 64 RGB to 16 channels of 8 x 8."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from zimage_vl.toy.judging import count_right, judge
from zimage_vl.toy.world import HELD_OUT, SIZE, TRAINED, Scene, draw_scene

from .loop import Run, train


STEPS, FINE_STEPS, BATCH, PICTURES = 3400, 3000, 16, 9450
KL = (1e-3, 1e-4)  # falls from the first to the second: a weak pull at the end keeps the colours apart


def pictures(count: int, seed: int, scenes: Sequence[Scene] = TRAINED) -> tuple[Tensor, list[Scene]]:
    """Draw `count` pictures, all scenes equally often: uint8 pixels (count, 3, 64, 64) and their scenes."""
    order = np.random.default_rng(seed).permutation(max(count, len(scenes)))[:count] % len(scenes)
    shown = [scenes[int(i)] for i in order]
    drawn = [np.asarray(draw_scene(scene, seed * 1_000_003 + n)) for n, scene in enumerate(shown)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous(), shown


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
    vae = new_vae().to(run.device, memory_format=torch.channels_last)
    data, _ = pictures(PICTURES, seed=1)
    steps, fine_steps = run.steps(STEPS), run.steps(FINE_STEPS)

    def losses(step: int) -> dict[str, Tensor]:
        generator = run.generator(1, step)
        rows = torch.randint(len(data), (BATCH,), generator=generator)
        x = to_model(data[rows]).to(run.device, memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(run.device)
        restored = vae.decode(posterior.mean + posterior.std * noise).sample
        pull = KL[0] * (KL[1] / KL[0]) ** min(1.0, step / steps)
        return {
            "l1": (restored - x).abs().mean(),
            "l2": (restored - x).square().mean(),
            # Means of 8 x 8 pixels: flat colour is what the group norms make hard.
            "flat": torch.nn.functional.avg_pool2d(restored - x, 8).abs().mean(),
            "kl": pull * posterior.kl().mean() / (16 * 8 * 8),
        }

    settings = {"betas": (0.9, 0.99), "decay": 0.995, "save_every": 400}
    train(run, "vae", vae, losses, steps=steps, lr=2e-3, **settings)
    # A second cycle: the first leaves edges soft and some colours apart.
    log = train(run, "vae_fine", vae, lambda n: losses(steps + n), steps=fine_steps, lr=1.5e-3, **settings)
    fresh, shown = pictures(400, seed=2)
    with torch.no_grad():
        x = to_model(fresh).to(run.device)
        latents = vae.encode(x).latent_dist.mean
        restored = vae.decode(latents).sample
    shift, deviation = latents.mean().item(), latents.std().item()
    vae.register_to_config(scaling_factor=1 / deviation, shift_factor=shift)
    psnr = (10 * torch.log10(4 / (restored - x).square().mean())).item()
    verdicts = [judge(to_image(picture)) for picture in restored]
    unseen, unseen_scenes = pictures(120, seed=3, scenes=HELD_OUT)
    with torch.no_grad():
        again = vae.decode(vae.encode(to_model(unseen).to(run.device)).latent_dist.mean).sample
    vae.to(memory_format=torch.contiguous_format).save_pretrained(run.path("vae"))
    record = {
        "steps": [steps, fine_steps],
        "psnr_db": round(psnr, 2),
        "judged_right": count_right(verdicts, shown),
        "correlation": round(float(np.mean([verdict.correlation for verdict in verdicts])), 4),
        "judged_right_held_out": count_right([judge(to_image(picture)) for picture in again], unseen_scenes),
        "deviation": round(deviation, 4),
        "log": log[-1],
    }
    run.finish("vae", record)


def load(run: Run) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(run.path("vae")).to(run.device).eval()
