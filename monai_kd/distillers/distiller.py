"""The core: one module that owns student, teachers and terms and returns prediction, loss and named terms."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monai_kd.distillers.heads import AUXILIARY_HEAD, named_heads
from monai_kd.distillers.pairing import build_adapters, pair_terms
from monai_kd.distillers.taps import FeatureTaps, stage_paths
from monai_kd.distillers.term import Term, plain_tensor

__all__ = ["DistillOutput", "Distiller"]

# names that the trainer's output already uses
_RESERVED_TERMS = ("image", "label", "pred", "loss")


class DistillOutput(NamedTuple):
    """What one training forward returns.

    Attributes:
        pred: the student's logits, ``(B, K, *spatial)``.
        loss: the weighted sum of all terms, 0-d.
        terms: the unweighted value of each term by name, 0-d, detached.
        weighted: the same times the term's weight and factor: what the loss is the sum of.
    """

    pred: Tensor
    loss: Tensor
    terms: dict[str, Tensor]
    weighted: dict[str, Tensor]


class Distiller(nn.Module):
    """Student, teachers and terms as one module: ``forward(image, label) -> DistillOutput``.

    A distiller without teachers and with the one term ``seg`` is the student-alone baseline. Terms read *views*:
    ``label``, ``<network>/logits``, and ``<network>/<tap>`` where a tap is a stage name of the network (``bottleneck``,
    ``encoder_2``, ...) or an alias given in ``taps``. A stage that a term names is tapped by itself.

    Frozen teachers stay in evaluation mode, run without a graph, follow ``.to()``, and are absent from
    ``state_dict()``, ``parameters()`` and ``buffers()``: optimizers, checkpoints, federated clients and DDP see the
    student. ``state_dict()`` has the student's bare keys, plus ``adapters.<term>.*`` where terms have adapters.

    A network with deep supervision gives its full-resolution head as ``logits`` and the others, in its order, as
    ``logits_1``, ``logits_2``, ...; terms give each the weight they like.

    A term may read several stages at once, and ``*`` stands for stages: where the target holds one, each of
    the student's stages meets the teacher's of the nearest stride (:func:`~monai_kd.distillers.pair_stages`). A number
    behind a colon picks one: ``student/decoder_*:-1`` is the last decoder stage, however many there are. For all that,
    and for adapters that take channels and sizes from the features they meet, the networks run once on ``input_shape``.

    A network whose output is a mapping of names to logits lists them in an attribute ``head_names``.

    A new method overrides :meth:`views`, if it adds names :meth:`known_views`, and if it adds networks :meth:`helpers`.

    Args:
        student: the network to train; its forward maps the image ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``.
        teachers: named networks, called on the same image.
        terms: named :class:`~monai_kd.distillers.Term` objects; the loss is the sum of ``weight * term``.
        taps: per network a list of stage names, or a mapping from an alias to a stage name or module path.
        cached: batch keys that hold views, e.g. ``{"teacher_logits": "teacher/logits"}``: they arrive as keyword
            arguments of ``forward`` and replace a live teacher, or are maps that a term reads, e.g. ``{"roi": "roi"}``
            for ``weight_map: roi``.
        freeze: ``False`` co-trains the teachers: they keep their mode and gradients and are part of ``state_dict()``
            under ``teachers.<name>.*``; give them terms of their own such as ``student: t1/logits, target: label``.
        input_shape: of one image as the networks get it, ``[1, C, *spatial]``; needed by ``*`` and by such adapters.
        parts: modules that a method trains beside the networks, by name; ``state_dict()`` has them as
            ``parts.<name>.*``.

    Raises:
        ValueError: no terms, a reserved or malformed name, an address that no view has (the message lists the known
            ones), or no ``input_shape`` where one is needed.
        TypeError: a term is not a ``Term`` or a network is not a module.
    """

    # batch keys that forward takes without their being declared in ``cached``
    optional_keys: tuple[str, ...] = ()

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, nn.Module] | None = None,
        terms: Mapping[str, Term] | None = None,
        taps: Mapping[str, Sequence[str] | Mapping[str, str]] | None = None,
        cached: Mapping[str, str] | None = None,
        freeze: bool = True,
        input_shape: Sequence[int] | None = None,
        parts: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        teachers, terms = dict(teachers or {}), dict(terms or {})
        _check_parts(student, teachers, terms)
        self.student = student
        self.freeze = freeze
        # a plain dict keeps frozen teachers out of parameters(), buffers() and state_dict()
        self.frozen_teachers: dict[str, nn.Module] = teachers if freeze else {}
        self.trained_teachers = nn.ModuleDict({} if freeze else teachers)
        self.terms = nn.ModuleDict(terms)
        self.parts = nn.ModuleDict(dict(parts or {}))
        self.cached = dict(cached or {})
        measured = pair_terms(terms, self.networks, input_shape)
        self.taps = self._make_taps(taps or {})
        self._check_addresses()
        build_adapters(terms, self.networks, self.taps, input_shape, measured)
        self.read_teachers = self._find_read_teachers()
        for teacher in self.frozen_teachers.values():
            teacher.eval()
            for parameter in teacher.parameters():  # TorchScript has no requires_grad_()
                parameter.requires_grad = False
        self.register_state_dict_post_hook(_to_public_keys)
        self.register_load_state_dict_pre_hook(_to_internal_keys)

    # ---- what a method overrides -------------------------------------------------------------------------------

    def known_views(self) -> list[str]:
        """Return every address a term may read."""
        live = [f"{net}/{view}" for net in self.networks for view in ("logits", *self.taps[net].names)]
        return ["label", *live, *self.cached.values()]

    def helpers(self) -> dict[str, nn.Module]:
        """Return the networks beside student and teachers that a method runs, by name; records name their weights."""
        return {}

    def views(self, image: Tensor, label: Tensor | None, **cached: Tensor) -> dict[str, Tensor]:
        """Return the named tensors that terms may read: label, logits and taps of every network, cached views."""
        views = {} if label is None else {"label": label}
        views.update({self.cached[key]: value for key, value in cached.items()})
        views.update(self._run("student", self.student, image))
        for name, teacher in self.trained_teachers.items():
            views.update(self._run(name, teacher, image))
        with torch.no_grad():
            for name in self.read_teachers:
                views.update(self._run(name, self.frozen_teachers[name], image))
        return views

    # ---- the contract ------------------------------------------------------------------------------------------

    def forward(self, image: Tensor, label: Tensor | None = None, **cached: Tensor) -> DistillOutput:
        """Run every network once and return prediction, weighted loss and the unweighted terms.

        Args:
            image: ``(B, C, *spatial)``.
            label: ``(B, 1, *spatial)`` class indices, or whatever the supervised loss takes.
            cached: the batch entries named in ``cached``.
        """
        if cached.keys() - set(self.optional_keys) != self.cached.keys():
            raise ValueError(f"cached views {sorted(cached)} were given, {sorted(self.cached)} are declared")
        views = self._forward_views(plain_tensor(image), label, cached)
        values = self.term_values(views, skip_unused=True)
        weighted = {name: _scaled(self.terms[name], value) for name, value in values.items()}
        loss = torch.stack(list(weighted.values())).sum()
        if dist.is_available() and dist.is_initialized():
            loss = loss + _ZeroGradient.apply(*self._trained_heads(views))
        return DistillOutput(views["student/logits"], loss, _detached(values), _detached(weighted))

    def term_values(self, views: Mapping[str, Tensor], skip_unused: bool = False) -> dict[str, Tensor]:
        """Return the unweighted value of each term on the views of a batch, 0-d, with its gradient.

        Args:
            views: as :meth:`views` gives them.
            skip_unused: leave out the gradient of terms that are multiplied by 0 and have no weights of their own.
        """
        values = {}
        for name, term in self.terms.items():
            with torch.set_grad_enabled(torch.is_grad_enabled() and not (skip_unused and _is_unused(term))):
                values[name] = self._value(name, term, views)
        return values

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The student and every live teacher by name."""
        return {"student": self.student, **dict(self.trained_teachers.items()), **self.frozen_teachers}

    def train(self, mode: bool = True) -> Distiller:
        """Set the mode of everything that learns; frozen teachers stay in evaluation mode."""
        super().train(mode)
        for teacher in self.frozen_teachers.values():
            teacher.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Distiller:
        """Move or cast frozen teachers together with the registered modules."""
        super()._apply(fn, recurse)
        for teacher in self.frozen_teachers.values():
            teacher._apply(fn)
        return self

    # ---- inner work --------------------------------------------------------------------------------------------

    def _forward_views(self, image: Tensor, label: Tensor | None, cached: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the views for ``forward``; a method that takes a gradient early does it here."""
        return self.views(image, label, **cached)

    def _run(self, name: str, network: nn.Module, image: Tensor) -> dict[str, Tensor]:
        with self.taps[name] as features:
            output = network(image)
        heads = {f"{name}/{head}": logits for head, logits in named_heads(output, image.ndim, name).items()}
        return {**heads, **{f"{name}/{tap}": value for tap, value in features.items()}}

    def _trained_heads(self, views: Mapping[str, Tensor]) -> list[Tensor]:
        """Return every output of the networks that learn."""
        heads = []
        for address, view in views.items():
            network, _, head = address.partition("/")
            is_trained = network == "student" or network in self.trained_teachers
            named = getattr(self.networks[network], "head_names", ()) if is_trained else ()
            if is_trained and (head == "logits" or AUXILIARY_HEAD.fullmatch(head) or head in named):
                heads.append(view)
        return heads

    def _value(self, name: str, term: nn.Module, views: Mapping[str, Tensor]) -> Tensor:
        missing = [address for address in term.addresses if address not in views]  # type: ignore[union-attr]
        if missing:
            raise ValueError(f"term '{name}' reads {missing}, which this batch does not hold; got {sorted(views)}")
        return term(views)

    def _make_taps(self, requested: Mapping[str, Sequence[str] | Mapping[str, str]]) -> dict[str, FeatureTaps]:
        unknown = sorted(set(requested) - set(self.networks))
        if unknown:
            raise ValueError(f"taps name {unknown}; known networks: {', '.join(self.networks)}")
        return {
            name: FeatureTaps(network, self._tap_paths(name, network, requested.get(name, {})))
            for name, network in self.networks.items()
        }

    def _tap_paths(self, name: str, network: nn.Module, requested: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
        paths = dict(requested) if isinstance(requested, Mapping) else {tap: tap for tap in requested}
        if "logits" in paths:
            raise ValueError(f"taps of '{name}' use the name 'logits', which is the network's output; choose another")
        stages = stage_paths(network)
        for address in self._addresses():
            net, _, view = address.partition("/")
            if net == name and view in stages:
                paths.setdefault(view, view)
        return paths

    def _addresses(self) -> Iterable[str]:
        return (address for term in self.terms.values() for address in term.addresses)  # type: ignore[union-attr]

    def _find_read_teachers(self) -> list[str]:
        """Return the frozen teachers that a term reads; running the others would cost time for nothing."""
        read = {address.partition("/")[0] for address in self._addresses()}
        unread = [name for name in self.frozen_teachers if name not in read]
        if unread:
            warnings.warn(f"no term reads the teachers {unread}: they are not run", stacklevel=3)
        return [name for name in self.frozen_teachers if name in read]

    def _check_addresses(self) -> None:
        known = self.known_views()
        doubled = sorted({address for address in known if known.count(address) > 1})
        if doubled:
            raise ValueError(f"views {doubled} come both from a live network and from the batch; keep one of the two")
        for name, term in self.terms.items():
            for address in term.addresses:  # type: ignore[union-attr]
                network, _, view = address.partition("/")
                is_head = network in self.networks and (  # known when it runs
                    AUXILIARY_HEAD.fullmatch(view) or view in getattr(self.networks[network], "head_names", ())
                )
                if address not in known and not is_head:
                    raise ValueError(f"term '{name}' reads '{address}'; known: {', '.join(self._suggestions(known))}")
        read = set(self._addresses())
        untrained = [head for head in getattr(self.student, "head_names", ()) if f"student/{head}" not in read]
        if untrained:
            raise ValueError(
                f"no term trains the heads {untrained} of the student; it has {', '.join(self.student.head_names)}"  # type: ignore[arg-type]
            )

    def _suggestions(self, known: list[str]) -> list[str]:
        stages = [f"{name}/{stage}" for name, network in self.networks.items() for stage in stage_paths(network)]
        return list(dict.fromkeys([*known, *stages]))


class _ZeroGradient(torch.autograd.Function):
    """0, with a gradient of 0: DDP waits for one at each weight, also where the terms in use read stages only."""

    @staticmethod
    def forward(ctx: Any, *heads: Tensor) -> Tensor:
        ctx.save_for_backward(*heads)
        return heads[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(head) for head in ctx.saved_tensors)


def _is_unused(term: Any) -> bool:
    """Tell whether a term only shows up in the log; DDP wants a gradient for weights, be it 0."""
    return term.scale == 0 and not any(parameter.requires_grad for parameter in term.parameters())


def _scaled(term: Any, value: Tensor) -> Tensor:
    return torch.zeros_like(value) if _is_unused(term) else term.scale * value  # 0 times nan is nan


def _detached(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in values.items()}


def _check_parts(student: Any, teachers: Mapping[str, Any], terms: Mapping[str, Any]) -> None:
    for name, network in {"student": student, **teachers}.items():
        if not isinstance(network, nn.Module):
            raise TypeError(f"network '{name}' must be a torch.nn.Module, got {network!r}")
    for name in teachers:
        if name in ("student", "label") or "/" in name or "." in name:
            raise ValueError(f"'{name}' cannot name a teacher: 'student', 'label', '/' and '.' are reserved")
    if not terms:
        raise ValueError(
            "a distiller needs at least one term, e.g. seg: Term(loss, 'student/logits', 'label'); got none"
        )
    for name, term in terms.items():
        if not isinstance(term, Term):
            raise TypeError(f"term '{name}' must be a monai_kd.distillers.Term, got {term!r}")
        if name in _RESERVED_TERMS or "/" in name or "." in name:
            raise ValueError(f"'{name}' cannot name a term: {', '.join(_RESERVED_TERMS)}, '/' and '.' are reserved")


# Public keys are what checkpoints and federated clients see; internal keys are where the modules live.
#   student.<key>              <->  <key>
#   terms.<term>.adapter.<key> <->  adapters.<term>.<key>
#   terms.<term>.loss.<key>    <->  losses.<term>.<key>
#   trained_teachers.<t>.<key> <->  teachers.<t>.<key>
#   parts.<part>.<key>         <->  parts.<part>.<key>
def _public_key(key: str) -> str:
    head, _, rest = key.partition(".")
    if head == "student":
        return rest
    if head == "parts":
        return key
    if head == "trained_teachers":
        return f"teachers.{rest}"
    term, part, leaf = rest.split(".", 2)
    return f"{'adapters' if part == 'adapter' else 'losses'}.{term}.{leaf}"


def _internal_key(key: str) -> str:
    head, _, rest = key.partition(".")
    if head == "teachers":
        return f"trained_teachers.{rest}"
    if head == "parts":
        return key
    if head in ("adapters", "losses"):
        term, leaf = rest.split(".", 1)
        return f"terms.{term}.{'adapter' if head == 'adapters' else 'loss'}.{leaf}"
    return f"student.{key}"


def _rename(state: dict[str, Any], prefix: str, rule: Any) -> None:
    """Rename in place, keeping the order, every key below ``prefix``."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + rule(key[len(prefix) :])] = state.pop(key)


def _to_public_keys(module: Distiller, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    _rename(state, prefix, _public_key)


def _to_internal_keys(module: Distiller, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state, prefix, _internal_key)
