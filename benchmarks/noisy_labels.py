"""Does a distiller help where the teacher knows and the labels are wrong? One small fixed task, the six classics.

    python benchmarks/noisy_labels.py [--seeds 5] [--no-record]

Images of 32 x 32 pixels hold an ellipse, a striped rectangle and a dark ellipse. A teacher learns them from many
clean labels; students learn from a handful whose labels are shifted, grown or shrunk, swapped or missing, alone and
with each classic distiller. Losses, weights, temperatures, adapters and ramps come from the student bundle's
configurations as they are; what differs between two students of a seed is the overlay. Scores are the mean foreground
Dice, in percent, on clean labels of other images. Figures go to the screen, the record and its figure to
docs/results/zoo/noisy_labels.json and .png. About four minutes on one CPU core.

The control is the same with a teacher that was never trained. Students alone learn the wrong labels by heart, so that a
part of what AT and ReviewKD bring is regularization: the features of an untrained teacher help too, though less.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.engines import PrepareBatchExtraInput
from monai.handlers import LrScheduleHandler
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.optimizers import WarmupCosineSchedule
from noisy_labels_task import CLASS_NAMES, Data, Task, make_data
from torch import Tensor, nn
from tqdm import tqdm

from monai_kd.distillers import Distiller
from monai_kd.engines import DistillationTrainer
from monai_kd.handlers import TermSchedules
from monai_kd.handlers.provenance import environment, network_facts, write_json
from monai_kd.visualize import save_figure
from monai_kd.visualize.panels import CLASS_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "bundles" / "student" / "configs"
CLASSICS = ("kd", "at", "dkd", "cwd", "review", "dist")
ALONE, SHOWN = "baseline", "kd"  # the control, and the distilled student in the figure
SHOWN_CASES = (8, 0)  # of the training images one whose label misses an object and swaps another; of the test images
NEEDED = 2.0  # Dice points of mean gain that each classic must bring


class Outcome(NamedTuple):
    """Dice in percent per method and seed, and the students of the first seed."""

    dice: dict[str, list[float]]
    students: dict[str, nn.Module]
    untrained: dict[str, list[float]] = {}  # Dice as in ``dice``, of a teacher that knows nothing


# ---------------------------------------------------------------- teacher and students


def make_network(channels: Sequence[int], seed: int) -> UNet:
    """Build the student bundle's architecture in 2-D, with weights that the seed alone decides."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(2, 1, len(CLASS_NAMES) + 1, channels, strides=[2] * (len(channels) - 1), num_res_units=2)


def make_teacher(task: Task, data: Data, steps: int | None = None) -> nn.Module:
    """Train the teacher on clean labels; with 0 steps it knows nothing."""
    steps = task.teacher_steps if steps is None else steps
    teacher, loss = make_network(task.teacher_channels, task.seed), DiceCELoss(softmax=True, to_onehot_y=True)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=task.learning_rate)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=steps // 10, t_total=steps)
    order = torch.Generator().manual_seed(task.seed)
    image, label = data.teaching
    for _ in range(steps):
        chosen = torch.randperm(len(image), generator=order)[:16]
        optimizer.zero_grad()
        loss(teacher(image[chosen]), label[chosen]).backward()
        optimizer.step()
        schedule.step()
    return teacher.eval()


def train_student(task: Task, method: str, seed: int, teacher: nn.Module, data: Data) -> nn.Module:
    """Train a student with a method's terms and schedules, as the student bundle's files give them."""
    overlay = CONFIGS / "baseline.yaml" if method == ALONE else CONFIGS / "distillers" / f"{method}.yaml"
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.yaml"), str(overlay)])
    terms, schedules = (parser.get_parsed_content(key) for key in ("terms", "schedules"))
    student = make_network(task.student_channels, seed)
    teachers = {} if method == ALONE else {"teacher": teacher}
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # adapters draw their weights
        distiller = Distiller(student, teachers, terms, input_shape=[1, 1, task.size, task.size])
    trained = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=task.learning_rate)
    steps = task.student_steps
    learning_rates = WarmupCosineSchedule(optimizer, warmup_steps=steps // 10, t_total=steps)
    trainer = DistillationTrainer(
        device=torch.device("cpu"),
        max_epochs=steps,
        train_data_loader=[dict(zip(("image", "label"), data.training, strict=True))],
        network=distiller,
        optimizer=optimizer,
        prepare_batch=PrepareBatchExtraInput(extra_keys={"label": "label"}),
        decollate=False,
        train_handlers=[
            LrScheduleHandler(learning_rates, print_lr=False, epoch_level=False),
            TermSchedules(distiller, schedules),
        ],
    )
    trainer.run()
    return student.eval()


def predicted(network: nn.Module, image: Tensor) -> Tensor:
    """Return the most probable class of each pixel, ``(N, 1, H, W)``."""
    with torch.inference_mode():
        return network(image).argmax(dim=1, keepdim=True)


def mean_dice(network: nn.Module, cases: tuple[Tensor, Tensor]) -> float:
    """Return the mean Dice of a network over images and foreground classes in percent, of hard labels."""
    return agreement(predicted(network, cases[0]), cases[1])


def agreement(prediction: Tensor, label: Tensor) -> float:
    metric = DiceMetric(include_background=False, num_classes=len(CLASS_NAMES) + 1)
    metric(prediction, label)
    return 100 * float(metric.aggregate())


def run(
    task: Task, data: Data, teacher: nn.Module, seeds: int, methods: Sequence[str] = CLASSICS, progress: bool = False
) -> Outcome:
    """Train and score a student alone and one with each method, from the same initial weights per seed."""
    outcome = Outcome({method: [] for method in (ALONE, *methods)}, {})
    with tqdm(total=seeds * len(outcome.dice), unit="student", disable=not progress) as bar:
        for seed in range(seeds):
            for method, dice in outcome.dice.items():
                bar.set_postfix_str(f"seed {seed}, {method}")
                student = train_student(task, method, seed, teacher, data)
                dice.append(mean_dice(student, data.test))
                outcome.students.setdefault(method, student)
                bar.update()
    return outcome


# ---------------------------------------------------------------- what is shown and kept


def gains(dice: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Return each method's Dice minus the student's alone, seed by seed, in points."""
    alone = dice[ALONE]
    return {
        method: [own - other for own, other in zip(values, alone, strict=True)]
        for method, values in dice.items()
        if method != ALONE
    }


def with_control(task: Task, data: Data, outcome: Outcome, seeds: int, progress: bool = False) -> Outcome:
    """Return the outcome with what a teacher brings that was never trained."""
    untrained = make_teacher(task, data, steps=0)
    return outcome._replace(untrained=run(task, data, untrained, seeds, progress=progress).dice)


def table(dice: Mapping[str, Sequence[float]]) -> str:
    """Return mean Dice, and mean, SD and sign of the gain over the seeds, a line per method."""
    lines = [f"{'':<10}{'Dice %':>8}{'gain':>8}{'SD':>7}{'seeds > 0':>12}"]
    lines.append(f"{ALONE:<10}{statistics.mean(dice[ALONE]):>8.1f}")
    for method, gain in gains(dice).items():
        spread = f"{statistics.stdev(gain):.1f}" if len(gain) > 1 else "-"
        won = f"{sum(value > 0 for value in gain)} of {len(gain)}"
        lines.append(
            f"{method:<10}{statistics.mean(dice[method]):>8.1f}{statistics.mean(gain):>+8.1f}{spread:>7}{won:>12}"
        )
    return "\n".join(lines)


def draw(data: Data, teacher: nn.Module, outcome: Outcome) -> Figure:
    """Draw a training and a test case with their labels and predictions, and the gains of all seeds."""
    from monai.utils import optional_import

    figure_class, _ = optional_import("matplotlib.figure", name="Figure")
    figure = figure_class(figsize=(10.5, 7.6), facecolor="white", layout="constrained")
    cases, dots = figure.subfigures(2, 1, height_ratios=(1.25, 1.0))
    panels = cases.subplots(2, 6)
    networks = {
        "teacher": teacher,
        "student alone": outcome.students[ALONE],
        f"{SHOWN} student": outcome.students[SHOWN],
    }
    (image, noisy), clean, test = data.training, data.training_clean, data.test
    first, second = (slice(case, case + 1) for case in SHOWN_CASES)
    draw_case_row(panels[0], "a training image", networks, image[first], clean[first], noisy[first])
    draw_case_row(panels[1], "a test image", networks, test[0][second], test[1][second], None)
    draw_gains(dots.subplots(), gains(outcome.dice), gains(outcome.untrained) if outcome.untrained else {})
    return figure


def draw_case_row(
    row: Sequence[Axes],
    name: str,
    networks: Mapping[str, nn.Module],
    image: Tensor,
    clean: Tensor,
    noisy: Tensor | None,
) -> None:
    """Draw image, labels and predictions of one case ``(1, 1, H, W)``; heads give the Dice in percent."""
    maps = {title: predicted(network, image) for title, network in networks.items()}
    shown: dict[str, Tensor | None] = {"image": None, "clean label": clean, "noisy label": noisy, **maps}
    for panel, (title, mask) in zip(row, shown.items(), strict=True):
        panel.set(xticks=[], yticks=[])
        if title == "noisy label" and mask is None:
            panel.set_axis_off()
            panel.text(0.5, 0.5, "no student\nsaw this image", ha="center", va="center", transform=panel.transAxes)
            continue
        score = "" if mask is None or mask is clean else f": Dice {agreement(mask, clean):.0f}"
        panel.set_title(title + score, fontsize=10)
        draw_labels(panel, image[0, 0].numpy(), None if mask is None else mask[0, 0].numpy())
    row[0].set_ylabel(name, fontsize=10)


def draw_labels(panel: Axes, image: np.ndarray, label: np.ndarray | None) -> None:
    """Draw an image in gray with its objects filled in the colors of their classes."""
    gray = np.clip((image + 1.8) / 4.2, 0, 1)[..., None].repeat(3, axis=2)
    if label is not None:
        gray = 0.55 * gray
        for value, color in enumerate(CLASS_COLORS[: len(CLASS_NAMES)], start=1):
            rgb = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)]) / 255
            gray[label == value] = 0.15 * gray[label == value] + 0.85 * rgb
    panel.imshow(gray, interpolation="nearest")


def draw_gains(axes: Axes, gain: Mapping[str, Sequence[float]], control: Mapping[str, Sequence[float]]) -> None:
    """Draw a dot per seed and a bar for the mean of each method; hollow dots with an untrained teacher."""
    seeds = len(next(iter(gain.values())))
    for place, (method, values) in enumerate(gain.items()):
        across = place + np.linspace(-0.15, 0.15, seeds) if seeds > 1 else [place]
        axes.scatter(across, values, s=30, color="#2563eb", alpha=0.75, edgecolors="white", linewidths=0.6, zorder=3)
        mean = statistics.mean(values)
        axes.plot([place - 0.3, place + 0.3], [mean, mean], color="#111827", linewidth=2, zorder=2)
        axes.annotate(f"{mean:+.1f}", (place + 0.33, mean), va="center", fontsize=9)
        if method in control:
            places = place + 0.22 + np.linspace(-0.05, 0.05, seeds) if seeds > 1 else [place + 0.22]
            axes.scatter(places, control[method], s=22, facecolors="none", edgecolors="#b45309", zorder=3)
    axes.axhline(0, color="#374151", linewidth=1)
    axes.axhline(NEEDED, color="#9ca3af", linewidth=1, linestyle="--")
    axes.annotate(f"{NEEDED:g} points", (-0.48, NEEDED), xytext=(0, 3), textcoords="offset points", fontsize=8)
    axes.set_xticks(range(len(gain)), list(gain))
    axes.set_xlim(-0.5, len(gain) - 0.3)
    axes.set_ylabel("Dice points over the student alone")
    axes.set_title(
        f"gain on clean test labels: {seeds} seeds as dots, their mean as a bar; hollow: an untrained teacher",
        fontsize=10,
    )
    axes.grid(True, axis="y", color="#e5e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def record(task: Task, data: Data, teacher: nn.Module, outcome: Outcome) -> dict[str, Any]:
    """Return all that a reader needs to check the figures or to draw them again."""
    wrong = data.training[1] != data.training_clean
    return {
        **environment("cpu", REPOSITORY),
        "task": asdict(task),
        "classes": dict(enumerate(CLASS_NAMES, start=1)),
        "wrong_pixels_percent": 100 * float(wrong.float().mean()),
        "wrong_foreground_percent": 100 * float(wrong[data.training_clean > 0].float().mean()),
        "networks": {"teacher": network_facts(teacher), "student": network_facts(outcome.students[ALONE])},
        "teacher_dice_percent": mean_dice(teacher, data.test),
        "dice_percent": outcome.dice,
        "untrained_teacher_dice_percent": outcome.untrained,
        "gain_points": {
            method: {"mean": statistics.mean(gain), "seeds": gain} for method, gain in gains(outcome.dice).items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="initial weights of the students")
    parser.add_argument("--no-record", action="store_true", help="print only, write neither record nor figure")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "results" / "zoo" / "noisy_labels.json")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds is {arguments.seeds}; give at least 1")
    torch.set_num_threads(1)  # sums of several threads round differently
    task = Task()
    data = make_data(task)
    teacher = make_teacher(task, data)
    print(f"teacher: Dice {mean_dice(teacher, data.test):.1f} %")
    outcome = run(task, data, teacher, arguments.seeds, progress=True)
    print(table(outcome.dice))
    outcome = with_control(task, data, outcome, arguments.seeds, progress=True)
    print(f"with an untrained teacher:\n{table(outcome.untrained)}")
    if not arguments.no_record:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, record(task, data, teacher, outcome))
        figure = save_figure(draw(data, teacher, outcome), arguments.out.with_suffix(".png"))
        print(f"written: {arguments.out}, {figure}")


if __name__ == "__main__":
    main()
