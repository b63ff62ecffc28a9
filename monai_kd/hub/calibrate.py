"""Which weights bring the terms of a distillation to a wanted pull on the student, measured on real batches."""

from __future__ import annotations

import difflib
import inspect
import itertools
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.utils import set_determinism
from tqdm import tqdm

from monai_kd.distillers import Distiller
from monai_kd.engines import DistillationTrainer
from monai_kd.export.pipeline import quiet
from monai_kd.handlers import override_problems
from monai_kd.handlers.gradient_ratio import check_reference, trainer_gradient_norms
from monai_kd.hub.bare_training import bare_trainer, shown, training_files
from monai_kd.hub.bundle_folder import BundleFolder

__all__ = ["Calibration", "TermPull", "calibrate_terms"]


@dataclass(frozen=True)
class TermPull:
    """How strongly one term pulls on the student.

    Attributes:
        name: of the term.
        weight: as configured.
        ratio: gradient norm of the weighted term divided by the reference's, mean over the batches.
        sd: standard deviation of the ratio over the batches; 0 with one batch.
        suggested: weight that brings the mean to the wanted ratio; None for the reference, and for a term that sends
            the student no gradient.
    """

    name: str
    weight: float
    ratio: float
    sd: float
    suggested: float | None


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        terms: in the order of the configuration, the reference among them.
        reference: name of the term that the others are compared with.
        wanted: ratio that the suggested weights bring.
        batches: how many were measured.
        warmup: iterations on the reference alone before that.
    """

    terms: list[TermPull]
    reference: str
    wanted: float
    batches: int
    warmup: int

    @property
    def options(self) -> str:
        """The suggested weights as options of ``monai.bundle run``."""
        found = [
            f"--terms::{term.name}::weight {term.suggested:.4g}" for term in self.terms if term.suggested is not None
        ]
        return " ".join(found)

    def table(self) -> str:
        """Return the measurement as a Markdown table, with the options below it."""
        rows = [("term", "weight", "ratio now, mean", "SD", f"weight for ratio {self.wanted:g}")]
        rows.append(("---", "---:", "---:", "---:", "---:"))
        for term in self.terms:
            measured = f"{term.ratio:.4g}", f"{term.sd:.2g}"
            rows.append((term.name, f"{term.weight:g}", *measured, self._suggestion(term)))
        when = f"after {self.warmup} iterations on '{self.reference}' alone" if self.warmup else "at the random start"
        note = f"Gradient norm on the student over that of '{self.reference}', n = {self.batches} batches, {when}."
        return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + ["", note, self.options]).rstrip()

    def _suggestion(self, term: TermPull) -> str:
        if term.name == self.reference:
            return "reference"
        return "no gradient" if term.suggested is None else f"{term.suggested:.4g}"


def calibrate_terms(
    bundle: str | Path,
    config_file: str | Sequence[str] = "configs/train.yaml",
    batches: int = 10,
    ratio: float = 1.0,
    reference: str = "seg",
    warmup: int = 20,
    overrides: Mapping[str, Any] | None = None,
) -> Calibration:
    """Measure the gradient of every term on real training batches, and suggest weights.

    The bundle's training is built as its configuration says, without logs and validation. The student takes ``warmup``
    steps on the reference term alone, because its random start is not typical. Then its weights stay, and the gradient
    of each term is measured on the following batches at the whole weight, without schedules. The gradient is linear in
    the weight, so a suggested weight gives the wanted ratio on the same batches. Nothing is written into the bundle or
    the current folder. Evaluates the bundle's configuration, so use it on bundles you trust.

    Args:
        bundle: the bundle's folder.
        config_file: configuration files, later ones win; relative to the bundle, or else to the current folder.
        batches: how many are measured.
        ratio: wanted gradient norm of each term relative to the reference's.
        reference: name of the supervised term.
        warmup: iterations before the measurement; 0 measures at the random start.
        overrides: ``::`` id to value, as options of ``monai.bundle run``.

    Raises:
        FileNotFoundError: bundle, configuration, data or teacher missing.
        ValueError: an override of an unknown key, an unknown reference, a number out of range, a configuration of
            several processes, nothing to calibrate, or a gradient that is not finite.
        TypeError: the configuration trains no Distiller.
    """
    _check_numbers(batches, ratio, warmup)
    folder = BundleFolder(bundle)
    files = training_files(folder.root, [config_file] if isinstance(config_file, str) else list(config_file))
    if problems := override_problems(files, overrides or {}):
        raise ValueError("; ".join(problem + _option_hint(problem) for problem in problems))
    with tempfile.TemporaryDirectory() as temporary, quiet():
        trainer, seed = bare_trainer(folder.root, files, overrides or {}, temporary)
        distiller: Any = getattr(trainer.network, "_orig_mod", trainer.network)  # where torch.compile keeps the module
        check_reference(distiller, reference)
        if len(distiller.terms) == 1:
            raise ValueError(f"'{reference}' is the only term of {shown(files)}: nothing to calibrate")
        with tqdm(total=warmup + batches, desc="calibrate", unit="batch", disable=None) as bar:
            _warm_up(trainer, distiller, reference, warmup, seed, bar.update)
            measured = list(_measure(trainer, distiller, reference, batches, seed + 1, bar.update))
    return Calibration(_pulls(distiller, reference, ratio, measured), reference, ratio, batches, warmup)


def _check_numbers(batches: Any, ratio: Any, warmup: Any) -> None:
    for name, value, least in (("batches", batches, 1), ("warmup", warmup, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}")
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < math.inf:
        raise ValueError(f"ratio is {ratio!r}; give a positive number such as 1.0")


def _option_hint(problem: str) -> str:
    """Name the option of this command that a key nobody knows resembles."""
    name = problem.removeprefix("--").partition(":")[0]
    near = difflib.get_close_matches(name, inspect.signature(calibrate_terms).parameters, n=1)
    return f"; did you mean the option --{near[0]}?" if near and problem.startswith(f"--{name}: no such key") else ""


def _warm_up(
    trainer: DistillationTrainer,
    distiller: Distiller,
    reference: str,
    steps: int,
    seed: int,
    advance: Callable[[], Any],
) -> None:
    """Train on the reference alone: the other terms get the factor 0 for that long."""
    length = trainer.state.epoch_length
    if not length:
        raise ValueError("the training data give no batch: nothing to measure")
    _seed(trainer, seed)
    if steps == 0:
        return
    others: list[Any] = [term for name, term in distiller.terms.items() if name != reference]
    for term in others:
        term.factor = 0.0

    def count(engine: Engine) -> None:
        advance()
        if engine.state.iteration == steps:
            engine.terminate()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, count)
    trainer.state.max_epochs = max(trainer.state.max_epochs or 0, math.ceil(steps / length))
    trainer.run()
    for term in others:
        term.factor = 1.0


def _measure(
    trainer: DistillationTrainer,
    distiller: Distiller,
    reference: str,
    batches: int,
    seed: int,
    advance: Callable[[], Any],
) -> Iterator[dict[str, float]]:
    """Yield, batch by batch, the gradient norm of each term at weight 1, relative to the weighted reference's."""
    _seed(trainer, seed)
    distiller.train()
    weight: Any = distiller.terms[reference].weight
    endless = itertools.chain.from_iterable(itertools.repeat(trainer.data_loader))
    for number, batch in enumerate(itertools.islice(endless, batches), 1):
        norms = trainer_gradient_norms(trainer, distiller, batch, weighted=False)
        for name, norm in norms.items():
            if not math.isfinite(norm):
                raise ValueError(
                    f"the gradient of term '{name}' has the norm {norm} on batch {number}: its loss is unstable"
                )
        whole = abs(weight) * norms[reference]
        if whole == 0:
            raise ValueError(f"the reference term '{reference}' sends the student no gradient on batch {number}")
        yield {name: norm / whole for name, norm in norms.items()}
        advance()


def _seed(trainer: DistillationTrainer, seed: int) -> None:
    """Let order and augmentation of the batches that follow depend on the seed alone."""
    set_determinism(seed)
    set_rnd(getattr(trainer.data_loader, "dataset", None), seed)


def _pulls(
    distiller: Distiller, reference: str, wanted: float, measured: Sequence[Mapping[str, float]]
) -> list[TermPull]:
    pulls = []
    for name, term in distiller.terms.items():
        units = [ratios[name] for ratios in measured]
        mean, weight = statistics.fmean(units), float(term.weight)  # type: ignore[arg-type]
        sd = statistics.stdev(units) if len(units) > 1 else 0.0
        suggested = math.copysign(wanted / mean, weight) if mean > 0 and name != reference else None
        pulls.append(TermPull(name, weight, abs(weight) * mean, abs(weight) * sd, suggested))
    return pulls
