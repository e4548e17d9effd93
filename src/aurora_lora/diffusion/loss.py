"""The loss of a denoising model (Ho et al. 2020; v-prediction: Salimans and Ho 2022), as pure functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the U-Net is to predict: the noise e, or v = sqrt(a) e - sqrt(1 - a) x, as the scheduler says."""
    if scheduler.config.prediction_type == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(latents, noise, timesteps)
        return velocity
    return noise


def squared_errors(predicted: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error of each sample, (batch,), in float32."""
    return (predicted.float() - wanted.float()).square().flatten(1).mean(1)


def snr_weights(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR weights (batch,), Hang et al. 2023: min(snr, gamma) / snr, for v-prediction over snr + 1.

    snr = a / (1 - a), where a is the timestep's cumulative product of alphas.
    """
    a: Tensor = scheduler.alphas_cumprod.to(timesteps.device)[timesteps].double()
    snr = a / (1 - a)
    over = snr + 1 if scheduler.config.prediction_type == "v_prediction" else snr
    return (snr.clamp(max=gamma) / over).to(torch.float32)


def total_loss(errors: Tensor, prior_weight: float | None) -> Tensor:
    """The mean error of a batch; with prior preservation, whose images are its second half, the mean of the first half
    and `prior_weight` times that of the second (Ruiz et al. 2023, Eq. 2)."""
    if prior_weight is None:
        return errors.mean()
    own, others = errors.chunk(2)
    return own.mean() + prior_weight * others.mean()
