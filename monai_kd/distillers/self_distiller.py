"""Self-distillation: the teacher is a running average of the student (Tarvainen and Valpola 2017)."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from monai_kd.distillers.distiller import Distiller
from monai_kd.distillers.term import Term

__all__ = ["PhotometricNoise", "SelfDistiller"]


class SelfDistiller(Distiller):
    """A Distiller without a teacher of its own: terms read ``ema``, an exponential moving average of the student.

    ``ema/logits`` and ``ema/<tap>`` are the views of a frozen copy of the student in evaluation mode, which
    :meth:`update` moves after each optimizer step (:class:`monai_kd.handlers.ema_teacher.EMATeacher` calls it). The
    average is part of the training's state: ``state_dict()`` holds it as ``teachers.ema.*`` and a resume restores it to
    the last bit. It is in neither ``parameters()`` nor ``buffers()``, nor in the student's own file.

    Args:
        student: the network to train; it is copied as it is now.
        terms, taps, cached, input_shape: as for :class:`Distiller`.
        augment: module that makes the student's image harder in training, e.g. :class:`PhotometricNoise`; the average
            sees the image as it comes, and so do both in evaluation. It must keep every voxel at its place.

    Raises:
        TypeError: ``augment`` is not a module.
        ValueError: ``augment`` has weights or buffers to save, which would belong to no network; otherwise as for
            :class:`Distiller`.

    Source: Tarvainen and Valpola 2017, "Mean teachers are better role models". Their average runs in training mode,
    with dropout and batch statistics of its own; here it runs in evaluation mode, so that its answers are not noisy.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: Mapping[str, Term] | None = None,
        taps: Mapping[str, Sequence[str] | Mapping[str, str]] | None = None,
        cached: Mapping[str, str] | None = None,
        augment: nn.Module | None = None,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__(student, {"ema": copy.deepcopy(student)}, terms, taps, cached, input_shape=input_shape)
        self.augment = _checked_augment(augment)
        self.register_state_dict_post_hook(_add_average)
        self.register_load_state_dict_pre_hook(_load_average)

    @property
    def ema(self) -> nn.Module:
        """The average as a network."""
        return self.frozen_teachers["ema"]

    def update(self, momentum: float) -> None:
        """Move the average: ``ema = momentum * ema + (1 - momentum) * student``.

        This holds for parameters and floating buffers such as batch statistics; whole numbers are copied.

        Args:
            momentum: 0 (copy the student) to 1 (keep the average).

        Raises:
            ValueError: momentum is outside 0 to 1.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is {momentum!r}; it must be 0 (copy the student) to 1 (keep the average)")
        pairs = list(zip(_tensors(self.ema), _tensors(self.student), strict=True))
        averaged = [pair for pair in pairs if pair[0].is_floating_point() or pair[0].is_complex()]
        own, student = zip(*averaged, strict=True)
        get_ema_multi_avg_fn(momentum)(own, student, None)
        for whole, current in pairs:
            if not (whole.is_floating_point() or whole.is_complex()):
                whole.copy_(current)

    def _run(self, name: str, network: nn.Module, image: Tensor) -> dict[str, Tensor]:
        if name == "student" and self.training and self.augment is not None:
            image = self.augment(image)
        return super()._run(name, network, image)


class PhotometricNoise(nn.Module):
    """Change contrast, brightness and noise of images at random; every voxel stays at its place.

    ``image = factor * image**exponent + offset + noise``: factor, offset, exponent and the noise's SD are drawn for
    each sample and channel, on the image's device, from torch's generators, so that runs repeat and resume. MONAI's
    intensity transforms do the same to one image before it is batched, where student and teacher would share it.

    Args:
        noise_std: the SD of Gaussian noise is drawn between 0 and it, in units of the image.
        scale: the factor is drawn between ``1 - scale`` and ``1 + scale``, 0 to 1.
        shift: the offset is drawn between ``-shift`` and ``shift``, in units of the image.
        gamma: the exponent is drawn between ``exp(-gamma)`` and ``exp(gamma)``; it acts on the intensities brought to
            0 to 1 by their own minimum and maximum, which then stay.

    Shape:
        image: ``(B, C, *spatial)``, floating, and the same afterwards.

    Raises:
        ValueError: a setting that is not a finite number of at least 0, or ``scale`` above 1.
    """

    def __init__(self, noise_std: float = 0.1, scale: float = 0.1, shift: float = 0.1, gamma: float = 0.0) -> None:
        super().__init__()
        self.noise_std = _checked("noise_std", noise_std)
        self.scale = _checked("scale", scale, most=1.0)
        self.shift = _checked("shift", shift)
        self.gamma = _checked("gamma", gamma)

    def forward(self, image: Tensor) -> Tensor:
        draws = torch.rand(4, *image.shape[:2], *[1] * (image.ndim - 2), dtype=image.dtype, device=image.device)
        noise_std, factor, offset, exponent = draws[0], *(2 * draws[1:] - 1)
        if self.gamma:
            image = _power(image, (self.gamma * exponent).exp())
        image = (1 + self.scale * factor) * image + self.shift * offset
        return image + self.noise_std * noise_std * torch.randn_like(image)

    def extra_repr(self) -> str:
        return f"noise_std={self.noise_std}, scale={self.scale}, shift={self.shift}, gamma={self.gamma}"


def _power(image: Tensor, exponent: Tensor) -> Tensor:
    axes = tuple(range(2, image.ndim))
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    extent = torch.where(high > low, high - low, 1.0)
    return low + extent * ((image - low) / extent) ** exponent


def _checked(name: str, value: float, most: float = math.inf) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= most:
        bound = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"{name} is {value!r}; it must be a finite number of at least 0{bound}")
    return float(value)


def _checked_augment(augment: Any) -> nn.Module | None:
    if augment is None:
        return None
    if not isinstance(augment, nn.Module):
        raise TypeError(f"augment must be a torch.nn.Module such as PhotometricNoise(), got {augment!r}")
    held = [*dict(augment.named_parameters()), *augment.state_dict()]
    if held:
        raise ValueError(f"augment {type(augment).__name__} holds '{held[0]}'; it must have no weights and no state")
    return augment


def _tensors(network: nn.Module) -> Iterable[Tensor]:
    return itertools.chain(network.parameters(), network.buffers())


def _add_average(module: SelfDistiller, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for key, value in module.ema.state_dict().items():
        state[f"{prefix}teachers.ema.{key}"] = value


def _load_average(
    module: SelfDistiller,
    state: dict[str, Any],
    prefix: str,
    _metadata: Any,
    _strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Load the average's weights; what is missing or too much is reported with everything else."""
    inner = f"{prefix}trained_teachers.ema."  # the Distiller's own hook has renamed the public keys
    weights = {key.removeprefix(inner): state.pop(key) for key in list(state) if key.startswith(inner)}
    try:
        result = module.ema.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # shapes
        errors.append(f"teachers.ema: {error}")
        return
    missing.extend(f"{prefix}teachers.ema.{key}" for key in result.missing_keys)
    unexpected.extend(f"{prefix}teachers.ema.{key}" for key in result.unexpected_keys)
