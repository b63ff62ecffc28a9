"""What cooperation added to the core: further inputs of a loss, parts, heads of a mapping, and several processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from two_processes import in_two_processes

from monai_kd.distillers import CooperativeDistiller, CooperativeTeachers, Distiller, Term
from monai_kd.handlers import PerformanceWeights
from monai_kd.losses import DiceJaccardCE, PerformanceKL, SoftLogitKL
from monai_kd.networks import RouteModalities
from monai_kd.networks.nets import ChannelAttentionResUNet, CooperativeFusion

NAMES = ("flair", "t2")
REGIONS = {"whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]}
CHANNELS = (4, 8, 12)

# ---- inputs of a term -----------------------------------------------------------------------------------------------


class Remembers(nn.Module):
    """A loss with a further argument."""

    def forward(self, student: Tensor, target: Tensor, share: Tensor | None = None) -> Tensor:
        self.share = share
        return (student - target).square() * (1.0 if share is None else share)


def test_an_input_reaches_the_loss_without_its_graph():
    loss = Remembers()
    term = Term(loss, target="label", inputs={"share": "teacher/share"})
    share = torch.full((1, 1, 2), 0.5, requires_grad=True)
    views = {"student/logits": torch.zeros(1, 1, 2, requires_grad=True), "label": torch.full((1, 1, 2), 2.0)}
    value = term({**views, "teacher/share": 2 * share})
    assert value.item() == 4.0
    value.backward()
    assert share.grad is None
    assert not loss.share.requires_grad
    assert torch.equal(loss.share, torch.ones(1, 1, 2))
    assert Term(loss, target="label")(views).item() == 4.0
    assert loss.share is None


def test_an_input_is_one_of_the_views_that_a_term_needs():
    term = Term(Remembers(), target="label", inputs={"share": "roi"})
    assert set(term.addresses) == {"student/logits", "label", "roi"}
    with pytest.raises(ValueError, match=r"term 'seg' reads 'roi'; known: label, student/logits"):
        Distiller(nn.Conv2d(1, 1, 1), terms={"seg": term})
    distiller = Distiller(nn.Conv2d(1, 1, 1), terms={"seg": term}, cached={"roi": "roi"})
    image = torch.rand(1, 1, 2, 2)
    zero = distiller(image, image, roi=torch.zeros(1, 1, 2, 2)).loss
    assert zero.item() == 0
    assert distiller(image, image, roi=torch.ones(1, 1, 2, 2)).loss.item() > 0


def test_inputs_that_the_loss_does_not_take_are_refused():
    with pytest.raises(
        TypeError, match=r"inputs name 'shares', which Remembers does not take; .*student, target, share"
    ):
        Term(Remembers(), inputs={"shares": "roi"})
    with pytest.raises(TypeError, match="inputs must be addresses such as 'available/flair', got share: 3"):
        Term(Remembers(), inputs={"share": 3})


# ---- parts and heads ------------------------------------------------------------------------------------------------


def test_parts_are_saved_and_restored_beside_the_students_bare_keys():
    def build(fill: float) -> Distiller:
        student, part = nn.Conv2d(1, 2, 1), nn.Linear(2, 2)
        for parameter in (*student.parameters(), *part.parameters()):
            nn.init.constant_(parameter, fill)
        return Distiller(student, terms={"seg": Term(DiceJaccardCE())}, parts={"side_1": part})

    one, other = build(1.0), build(2.0)
    assert list(one.state_dict()) == ["weight", "bias", "parts.side_1.weight", "parts.side_1.bias"]
    assert other.load_state_dict(one.state_dict()) == ([], [])
    assert all((parameter == 1.0).all() for parameter in other.parameters())
    outer = nn.ModuleDict({"inner": build(3.0)})
    assert "inner.parts.side_1.weight" in outer.state_dict()
    assert outer.load_state_dict(outer.state_dict()) == ([], [])


class TwoHeads(nn.Module):
    """Logits by name."""

    head_names = ("flair", "fused")

    def __init__(self) -> None:
        super().__init__()
        self.flair, self.fused = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        flair, fused = self.flair(image), self.fused(image)
        return {"logits": (flair + fused).detach() / 2, "flair": flair, "fused": fused}


def test_heads_of_a_mapping_are_views():
    network = TwoHeads()
    terms = {name: Term(DiceJaccardCE(), f"student/{name}") for name in TwoHeads.head_names}
    distiller = Distiller(network, terms=terms)
    image, label = torch.rand(2, 1, 4, 4), torch.randint(0, 2, (2, 1, 4, 4))
    output = distiller(image, label)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    assert torch.equal(output.pred, network(image)["logits"])
    assert output.terms["fused"].item() == DiceJaccardCE()(network(image)["fused"], label).item()
    with pytest.raises(ValueError, match=r"term 'seg' reads 'student/t2'; known"):
        Distiller(network, terms={"seg": Term(DiceJaccardCE(), "student/t2")})


# ---- several processes ----------------------------------------------------------------------------------------------


def make_network() -> ChannelAttentionResUNet:
    return ChannelAttentionResUNet(2, 1, 4, CHANNELS, reduction=4)


def make_terms(kinds: tuple[str, ...]) -> dict[str, Term]:
    seg = DiceJaccardCE()
    available = {"available": "available"}
    targets = [f"teachers/{name}" for name in NAMES]
    terms = {
        "seg": Term(seg, weight=0.75),
        "kd": Term(PerformanceKL(2, REGIONS), target=targets, weight=0.15, inputs=available),
        "side_seg": Term(seg, "student/side_1", weight=0.07),
        "side_kd": Term(SoftLogitKL(4.0), "student/side_1", "teachers/fused", weight=0.03),
        "teach_fused": Term(seg, "teachers/fused", weight=0.08),
        **{f"teach_{name}": Term(seg, f"teachers/{name}") for name in NAMES},
    }
    return {name: term for name, term in terms.items() if name.startswith(kinds)}


def make_distiller(kinds: tuple[str, ...], side_stages: tuple[str, ...] = ("decoder_2",), **settings: Any) -> Any:
    torch.manual_seed(0)
    networks = {name: RouteModalities(make_network(), [number]) for number, name in enumerate(NAMES)}
    group = CooperativeTeachers(networks, {"fused": CooperativeFusion(2, [8, 8], 4, 4)}, {"fused": "decoder_2"})
    student = RouteModalities(make_network(), [2])
    return CooperativeDistiller(student, group, make_terms(kinds), side_stages, input_shape=[1, 3, 8, 8], **settings)


def make_batch(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 3, 16, 16, generator=generator)
    return {"image": image, "label": torch.randint(0, 4, (2, 1, 16, 16), generator=generator)}


JOINT = ("seg", "kd", "side", "teach")
CASES: dict[str, dict[str, Any]] = {
    "joint": {"kinds": JOINT},
    "staged": {"kinds": JOINT, "staged": True},
    "response": {"kinds": ("seg", "kd", "teach_flair", "teach_t2")},  # the fusion and the side head learn nothing
    "response_staged": {"kinds": ("seg", "kd", "teach_flair", "teach_t2"), "staged": True},
    "one_teacher_learns": {"kinds": ("seg", "kd", "teach_flair")},
    "pretrained": {"kinds": ("seg", "kd", "side"), "freeze": True},
    "student_alone": {"kinds": ("seg",), "side_stages": ()},  # the control: no teacher runs
}
WEIGHED = [name for name, settings in CASES.items() if settings["kinds"] != ("seg",)]


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {
        name.removeprefix("module."): torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in network.named_parameters()
    }


def one_share(rank: int) -> dict[Any, Any]:
    """What a process finds on its batches; DDP ends with this function, before the group does."""
    found: dict[Any, Any] = {}
    for name, settings in CASES.items():
        network = nn.parallel.DistributedDataParallel(make_distiller(**settings))
        for kind, seed in (("same", 7), ("own", rank)):  # twice: DDP complains of the first step in the second
            network.zero_grad()
            network(**make_batch(seed)).loss.backward()
            found[name, kind] = gradients(network)
        if name in WEIGHED:
            PerformanceWeights(network)(None)
            found[name, "dice"] = network.module.terms["kd"].loss.dice.clone()
    return found


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return in_two_processes(one_share, tmp_path_factory.mktemp("gloo"))


def alone(settings: dict[str, Any], seed: int) -> dict[str, Tensor]:
    distiller = make_distiller(**settings)
    distiller(**make_batch(seed)).loss.backward()
    return gradients(distiller)


@pytest.mark.parametrize("case", CASES)
class TestTwoProcesses:
    def test_the_same_data_gives_the_gradient_of_one_process(self, two_processes, case):
        expected = alone(CASES[case], 7)
        for found in two_processes:
            for key, gradient in expected.items():
                torch.testing.assert_close(found[case, "same"][key], gradient, atol=1e-6, rtol=1e-4, msg=key)

    def test_data_of_their_own_give_the_mean_of_both(self, two_processes, case):
        both = [alone(CASES[case], seed) for seed in (0, 1)]
        for found in two_processes:
            for key in both[0]:
                expected = (both[0][key] + both[1][key]) / 2
                torch.testing.assert_close(found[case, "own"][key], expected, atol=1e-6, rtol=1e-4, msg=key)


@pytest.mark.parametrize("case", WEIGHED)
def test_the_teachers_dice_are_those_of_the_joint_batch(two_processes, case):
    distiller = make_distiller(**CASES[case])
    batches = [make_batch(seed) for seed in (0, 1)]
    distiller(**{key: torch.cat([batch[key] for batch in batches]) for key in batches[0]})
    PerformanceWeights(distiller)(None)
    for found in two_processes:
        torch.testing.assert_close(found[case, "dice"], distiller.terms["kd"].loss.dice)
