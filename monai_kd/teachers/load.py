"""Load the network and the weights of any model folder, and say exactly what was loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_kd.teachers.contract import check_facts
from monai_kd.teachers.ensemble import EnsembleTeacher
from monai_kd.teachers.facts import Facts, read_facts
from monai_kd.teachers.matching import Matching, Student, adapt, same_names
from monai_kd.teachers.network_config import DEFAULT_ID, HUB_CONFIG, build_network, find_network
from monai_kd.teachers.nnunet import build_nnunet
from monai_kd.teachers.nnunet_plans import Plans, checkpoint_files, plans_folder, refuse_parts_of_models
from monai_kd.teachers.report import LoadReport, fill, finish, judge, load_report
from monai_kd.teachers.snapshot import resolve_snapshot
from monai_kd.teachers.weights import (
    file_sha256,
    find_weights,
    is_torchscript,
    read_nnunet_checkpoint,
    read_state_dict,
    weight_files,
)

__all__ = ["load_teacher"]


@dataclass(frozen=True)
class Source:
    """Where and how the network and its weights are read; see :func:`load_teacher`."""

    weights: str | Path | None = None
    network_id: str = DEFAULT_ID
    config_file: str | Path | None = None
    overrides: Mapping[str, Any] | None = None
    key_in_ckpt: str | None = None
    strict: bool = True
    map_location: str | torch.device = "cpu"
    folds: Sequence[int | str] | int | str | None = None

    def of_a_config(self, weights: bool) -> list[str]:
        """The settings that a folder without a MONAI config would ignore."""
        settings = {"config_file": self.config_file, "overrides": self.overrides, "key_in_ckpt": self.key_in_ckpt}
        settings["network_id"] = None if self.network_id == DEFAULT_ID else self.network_id
        settings["weights"] = self.weights if weights else None
        return [name for name, value in settings.items() if value]


def load_teacher(
    bundle_root: str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]],
    weights: str | Path | None = None,
    network_id: str = DEFAULT_ID,
    config_file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    key_in_ckpt: str | None = None,
    strict: bool = True,
    map_location: str | torch.device = "cpu",
    in_channels: int | None = None,
    class_names: Sequence[str] | None = None,
    patch_size: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    orientation: str | None = None,
    student_metadata: Mapping[str, Any] | None = None,
    class_map: Mapping[str, Any] | str | None = None,
    channel_order: Sequence[int | str] | None = None,
    intensity: Mapping[str, Any] | None = None,
    teacher_spacing_mm: Sequence[float] | None = None,
    teacher_orientation: str | None = None,
    resample: bool = False,
    size_multiple: int | Sequence[int] | None = None,
    folds: Sequence[int | str] | None = None,
    accept: Sequence[str] = (),
) -> nn.Module:
    """Build the network of a model folder and load its weights; frozen and in evaluation mode.

    Of a MONAI bundle only the network's definition and what it refers to are evaluated: no data lists, no handlers, and
    of the config's imports those whose names it uses. Its expressions, and a ``scripts/`` folder, are the bundle's code
    and do run, so load bundles you trust. ``scripts`` is importable during the build only: what it imports later is not
    found. The weights are read without running code (``weights_only=True``). An nnU-Net model runs no code of its own.

    Args:
        bundle_root: a bundle folder; or a TorchScript file of any name, or a folder without configs that holds one; or
            a folder of the Hugging Face cache; or an nnU-Net v2 model folder, known by its plans.json; or a list of
            these, whose probabilities are averaged. A mapping ``{"bundle_root": ..., **settings}`` is one teacher with
            settings of its own, alone or in a list.
        weights: relative to ``bundle_root``, or absolute. Default: models/model.pt, else models/model.ts, else
            model.safetensors, else the only weights file in models/. A TorchScript file fills the configured network by
            its state dict. For nnU-Net the file's name in each fold; default checkpoint_final.pth, else
            checkpoint_best.pth.
        network_id: ``::`` id in the config. The default falls back to ``network``.
        config_file: relative to ``bundle_root`` or its configs/. Default: the first in configs/ that has the id, of
            inference.{json,yaml,yml}, infer.json, train.{json,yaml,yml}, and then config.json beside configs/.
        overrides: ``::`` id to value, set before the build. ``bundle_root`` is always the given folder, and the
            config's ``device`` is ``map_location``.
        key_in_ckpt: where the state dict is in the checkpoint; not needed for a plain state dict or one under
            ``model``, ``state_dict`` or ``network``. The prefix ``module.`` of DDP is removed.
        strict: every key must fit. False loads what fits and warns with the same report.
        map_location: device of the returned network.
        in_channels, class_names, patch_size: the student's task. With ``class_names`` the teacher is run once on a
            patch of zeros and must give one channel a class, in the student's order
            (:func:`~monai_kd.teachers.check_teacher`); None leaves its outputs unchecked.
        spacing_mm, orientation: of the student's patches, e.g. ``[1, 1, 1]`` and ``RAS``; None is not compared.
        student_metadata: content of the student's metadata.json: modality, intensities and names of its channels.
        class_map: the student's class to one or a list of the teacher's, by name or channel; their probabilities are
            added up. ``"*"`` is all that no other class takes. ``"by_name"`` puts the same names into the student's
            order.
        channel_order: for each of the teacher's image channels the student's, by number or name.
        intensity: ``scale``, ``shift`` and ``clip`` (:class:`~monai_kd.teachers.RescaleIntensity`) that turn the
            student's intensities into those the teacher takes; for nnU-Net into the raw ones, e.g. Hounsfield units.
        teacher_spacing_mm: of the teacher along the student's axes, instead of what its folder states.
        teacher_orientation: axis codes of the teacher's images, instead of what its folder states; for nnU-Net those of
            its training files, taken to be the student's.
        resample: interpolate patches to the teacher's spacing and logits back.
        size_multiple: pad patches to multiples of this, one number or one for each of the teacher's axes; for nnU-Net
            known.
        folds: of an nnU-Net model; None averages all that have a checkpoint.
        accept: stated differences that are meant: modality, channels, intensity, spacing, orientation.

    Returns:
        The network, in wrappers if it needs any (:func:`~monai_kd.teachers.unwrap`); ``load_report(network)`` says
        which files were used.

    Raises:
        FileNotFoundError: no such folder, config or weights; the message says where it looked.
        ValueError: no network in the configs, an unknown or ineffective override, unreadable or ambiguous weights, a
            setting that does not fit, or a teacher of another task.
        TypeError: the id does not build a ``torch.nn.Module``.
        RuntimeError: the network cannot be built, or the weights do not fit it.
        ImportError: a package that this kind of model needs is not installed.
    """
    source = Source(weights, network_id, config_file, overrides, key_in_ckpt, strict, map_location, folds)
    student = Student(
        class_names, in_channels or 1, patch_size or (32, 32, 32), spacing_mm, orientation, student_metadata or {}
    )
    matching = Matching(
        class_map, channel_order, intensity, teacher_spacing_mm, teacher_orientation, resample, size_multiple, accept
    )
    if isinstance(bundle_root, (str, Path, Mapping)):
        root, source, matching = _member_settings(bundle_root, source, matching)
        return _load_member(root, source, student, matching)
    return _load_ensemble(bundle_root, source, student, matching)


def _load_member(
    root: str | Path, source: Source, student: Student, matching: Matching, same_order: Sequence[str] | None = None
) -> nn.Module:
    """One folder or file: its network, wrapped and checked. ``same_order`` are the classes of an ensemble."""
    place = resolve_snapshot(Path(root).expanduser().resolve())
    if plans_folder(place) is not None and student.orientation is None:
        student = replace(student, orientation="RAS")
    facts = _facts(place, student, matching)
    networks = _load_nnunet(facts.plans, source) if facts.plans is not None else [_load_bundle(place, source)]
    checked = student.class_names is not None
    if same_order is not None and matching.class_map is None and same_names(same_order, facts.class_names):
        student, matching = replace(student, class_names=same_order), replace(matching, class_map="by_name")
    wrapped = [adapt(network, str(root), facts, student, matching) for network in networks]
    for network, inner in zip(wrapped, networks, strict=True):
        if checked:
            check_facts(network, str(root), facts, student, matching)
        finish(network, load_report(inner))
    return wrapped[0] if len(wrapped) == 1 else _average(wrapped)


def _facts(place: Path, student: Student, matching: Matching) -> Facts:
    """What the folder states, and what the settings state in its place."""
    facts = read_facts(place, matching.teacher_orientation or student.orientation)
    if facts.plans is None and matching.teacher_orientation is not None:
        return replace(facts, orientation=matching.teacher_orientation)
    return facts


# ---- ensembles -------------------------------------------------------------------------------------------------------


def _load_ensemble(
    entries: Sequence[str | Path | Mapping[str, Any]], source: Source, student: Student, matching: Matching
) -> nn.Module:
    """Every entry's network; their classes are brought to the student's order, or else to the first entry's."""
    members = []
    order = student.class_names
    for entry in entries:
        root, own_source, own_matching = _member_settings(entry, source, matching)
        members.append(_load_member(root, own_source, student, own_matching, order))
        if order is None and own_matching.class_map is None:
            order = read_facts(resolve_snapshot(Path(root).expanduser().resolve())).class_names
    return _average(members)


def _member_settings(
    entry: str | Path | Mapping[str, Any], source: Source, matching: Matching
) -> tuple[str | Path, Source, Matching]:
    """A teacher's folder and its settings: the common ones, and on top those of its own."""
    if isinstance(entry, (str, Path)):
        return entry, source, matching
    of_source, of_matching = ([item.name for item in fields(kind)] for kind in (Source, Matching))
    known = ["bundle_root", *of_source, *of_matching]
    if not isinstance(entry, Mapping) or "bundle_root" not in entry or not set(entry) <= set(known):
        raise ValueError(f"a teacher is {entry!r}; give its folder, or a mapping with {', '.join(known)}")
    source = replace(source, **{name: entry[name] for name in of_source if name in entry})
    matching = replace(matching, **{name: entry[name] for name in of_matching if name in entry})
    return entry["bundle_root"], source, matching


def _average(members: Sequence[nn.Module]) -> nn.Module:
    network = EnsembleTeacher(members)
    reports = tuple(load_report(member) for member in members)
    digest = hashlib.sha256("\n".join(report.sha256 for report in reports).encode()).hexdigest()
    loaded = sum(report.loaded for report in reports)
    return finish(network, LoadReport(None, None, None, digest, loaded, members=reports))


# ---- one bundle, one nnU-Net model -----------------------------------------------------------------------------------


def _load_bundle(root: Path, source: Source) -> nn.Module:
    if not root.exists():
        raise FileNotFoundError(
            f"bundle_root '{root}' does not exist; give a bundle, nnU-Net or Hugging Face folder, or a TorchScript file"
        )
    if source.folds is not None:
        raise ValueError(f"folds={source.folds} are of nnU-Net models, and '{root}' has no plans.json: remove folds")
    refuse_parts_of_models(root)
    script = _find_torchscript(root, source.weights, source.config_file)
    if script is not None:
        ignored = source.of_a_config(weights=root.is_file())  # beside a folder, weights chose the file
        if ignored:
            raise ValueError(
                f"'{script}' is TorchScript and has no config or checkpoint keys: remove {', '.join(ignored)}"
            )
        return _load_torchscript(script, source.map_location)
    found_file, found_id, config = find_network(root, source.network_id, source.config_file)
    weights_file = find_weights(root, source.weights)
    device = torch.device(source.map_location)
    network = build_network(root, config, found_id, found_file, source.overrides or {}, device)
    state = read_state_dict(weights_file, source.key_in_ckpt, source.map_location)
    report = fill(network, state, found_file, found_id, weights_file)
    judge(report, network, source.strict)
    return finish(network.to(device), report)


def _load_nnunet(plans: Plans, source: Source) -> list[nn.Module]:
    """One network a fold."""
    ignored = source.of_a_config(weights=False)
    if ignored:
        raise ValueError(
            f"'{plans.folder}' is an nnU-Net model and has no MONAI config or checkpoint keys: "
            f"remove {', '.join(ignored)}"
        )
    folds = [source.folds] if isinstance(source.folds, (int, str)) else source.folds
    networks = []
    for path in checkpoint_files(plans.folder, folds, None if source.weights is None else str(source.weights)):
        network = build_nnunet(plans)
        state = read_nnunet_checkpoint(path, "cpu").get("network_weights")
        if not isinstance(state, MutableMapping):
            raise ValueError(f"'{path}' has no network_weights; give a checkpoint that nnU-Net v2 wrote")
        report = fill(network, state, plans.path, plans.configuration, path)
        judge(report, network, source.strict)
        networks.append(finish(network.to(source.map_location), report))
    return networks


# ---- TorchScript: network and weights in one file -------------------------------------------------------------------


def _find_torchscript(root: Path, weights: str | Path | None, config_file: str | Path | None) -> Path | None:
    """The TorchScript file that ``bundle_root`` stands for; None if it is a folder with configs."""
    if root.is_file():
        if is_torchscript(root):
            return root
        raise ValueError(
            f"'{root}' is not TorchScript, so it holds no network; give the bundle folder, with its configs/"
        )
    if config_file is not None or (root / "configs").is_dir() or (root / HUB_CONFIG).is_file():
        return None
    files = weight_files(root) + weight_files(root / "models") if weights is None else [find_weights(root, weights)]
    scripts = [path for path in files if is_torchscript(path)]
    if len(scripts) == 1:
        return scripts[0]
    found = ", ".join(path.name for path in scripts) or "none"
    raise FileNotFoundError(
        f"'{root}' has no configs/ that define a network, and is no folder with one TorchScript file (found: {found})"
    )


def _load_torchscript(path: Path, map_location: str | torch.device) -> nn.Module:
    network = torch.jit.load(str(path), map_location=map_location)
    return finish(network, LoadReport(None, None, path, file_sha256(path), loaded=len(network.state_dict())))
