"""Teachers that cooperate: views, gradients, modes, and the exact accelerations of the joint step."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import UNet

from monai_kd.distillers import CooperativeDistiller, CooperativeTeachers, Distiller, Term
from monai_kd.inferers import ShallowConvolutionsInFloat32
from monai_kd.losses import DiceJaccardCE, PerformanceKL, SoftLogitKL
from monai_kd.networks import RouteModalities
from monai_kd.networks.nets import ChannelAttentionResUNet, CooperativeFusion

NAMES = ("flair", "t2", "t1")
REGIONS = {"whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": [3]}
CHANNELS = (4, 8, 12, 16)


def make_network(dims=3, channels=CHANNELS):
    return ChannelAttentionResUNet(dims, 1, 4, channels=channels, reduction=4)


def make_group(dims=3, names=NAMES, levels=1, channels=CHANNELS):
    networks = {name: RouteModalities(make_network(dims, channels), [i]) for i, name in enumerate(names)}
    fusions = {"fused": CooperativeFusion(dims, [channels[1]] * len(names), 4)}
    stages = {"fused": "decoder_2"}
    if levels == 2:
        fusions["fused_2"] = CooperativeFusion(dims, [channels[2]] * len(names), 4)
        stages["fused_2"] = "decoder_3"
    return CooperativeTeachers(networks, fusions, stages)


def make_terms(names=NAMES, coop=0.08, teachers=1.0):
    seg = DiceJaccardCE()
    terms = {
        "seg": Term(seg, "student/logits", "label", 0.75),
        "kd": Term(
            PerformanceKL(len(names), REGIONS),
            "student/logits",
            [f"teachers/{name}" for name in names],
            0.15,
            inputs={"available": "available"},
        ),
        "side_seg": Term(seg, "student/side_1", "label", 0.07),
        "side_kd": Term(SoftLogitKL(4.0), "student/side_1", "teachers/fused", 0.03),
        "coop": Term(seg, "teachers/fused", "label", coop),
    }
    for name in names:
        terms[f"seg_{name}"] = Term(
            seg, f"teachers/{name}", "label", teachers, inputs={"available": f"available/{name}"}
        )
    return terms


def make_distiller(dims=3, names=NAMES, seed=0, **settings):
    torch.manual_seed(seed)
    terms = settings.pop("terms", None) or make_terms(names)
    group = settings.pop("group", None) or make_group(dims, names)
    student = RouteModalities(make_network(dims), [len(names)])
    shape = [1, len(names) + 1, *[16] * dims]
    return CooperativeDistiller(student, group, terms, input_shape=shape, **settings)


def make_batch(dims=3, names=NAMES, batch=2, size=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, len(names) + 1, *[size] * dims, generator=generator)
    label = torch.randint(0, 4, (batch, 1, *[size] * dims), generator=generator)
    return image, label


def gradients(module):
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


# ---- gradients ------------------------------------------------------------------------------------------------------


def test_student_terms_send_no_gradient_to_teachers_or_fusion():
    terms = {name: term for name, term in make_terms().items() if not name.startswith(("seg_", "coop"))}
    distiller = make_distiller(terms=terms)
    distiller(*make_batch()).loss.backward()
    assert all(value is None or not value.any() for value in gradients(distiller.group).values())
    assert all(
        value is not None and value.any() for key, value in gradients(distiller.student).items() if "weight" in key
    )


def test_teacher_terms_send_no_gradient_to_the_student():
    terms = {name: term for name, term in make_terms().items() if name.startswith(("seg_", "coop"))}
    distiller = make_distiller(terms=terms)
    distiller(*make_batch()).loss.backward()
    assert all(value is None or not value.any() for value in gradients(distiller.student).values())
    assert all(not p.grad.any() for p in distiller.parts.parameters() if p.grad is not None)


def test_fused_loss_alone_trains_every_teacher():
    distiller = make_distiller(terms=make_terms(teachers=0.0))
    distiller(*make_batch()).loss.backward()
    for name in NAMES:
        inner = distiller.group.networks[name].network
        assert inner.down[0].main[2].weight.grad.abs().max() > 0
        assert inner.head.weight.grad is None or not inner.head.weight.grad.any()  # above the fused features


def test_one_backward_equals_teacher_and_student_steps_of_their_own():
    both = make_distiller()
    batch = make_batch()
    both(*batch).loss.backward()
    for part in (("seg_", "coop"), ("seg", "kd", "side")):
        is_teacher = part[0] == "seg_"
        terms = {n: t for n, t in make_terms().items() if n.startswith(("seg_", "coop")) == is_teacher}
        alone = make_distiller(terms=terms)
        alone(*batch).loss.backward()
        module = "group" if is_teacher else "student"
        for (key, got), (_, expected) in zip(
            gradients(getattr(both, module)).items(), gradients(getattr(alone, module)).items(), strict=True
        ):
            torch.testing.assert_close(got, expected, msg=key, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("available", [None, [[1, 1, 0], [0, 1, 1]]])
def test_staged_backward_equals_the_plain_one(available):
    plain, staged = make_distiller().double(), make_distiller(staged=True).double()
    image, label = make_batch()
    image = image.double()
    extra = {} if available is None else {"available": torch.tensor([[*row, 1] for row in available])}
    first, second = plain(image, label, **extra), staged(image, label, **extra)
    torch.testing.assert_close(first.loss, second.loss)
    (3 * first.loss).backward()
    (3 * second.loss).backward()  # as a loss scaler would
    for (key, got), (_, expected) in zip(gradients(staged).items(), gradients(plain).items(), strict=True):
        expected = torch.zeros_like(got) if expected is None else expected
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12, msg=key)


def test_staged_backward_holds_under_autocast():
    plain, staged = make_distiller(), make_distiller(staged=True)
    batch = make_batch()
    for distiller in (plain, staged):
        with ShallowConvolutionsInFloat32(), torch.autocast("cpu", torch.bfloat16):
            loss = distiller(*batch).loss
        loss.backward()
    for (key, got), (_, expected) in zip(gradients(staged).items(), gradients(plain).items(), strict=True):
        if expected is not None and expected.norm() > 1e-4:
            assert (got - expected).norm() < 0.05 * expected.norm(), key


def test_staged_backward_runs_at_the_loss_scale_and_ends_at_its_own():
    found, arriving = {}, {}
    for scale in (1.0, 1024.0):
        distiller = make_distiller(staged=True)
        distiller.loss_scale = scale
        head = distiller.group.networks["t2"].network.head
        head.register_full_backward_hook(
            lambda _module, _inputs, outputs, scale=scale: arriving.update({scale: outputs[0].clone()})
        )
        (1024.0 * distiller(*make_batch()).loss).backward()
        found[scale] = gradients(distiller.group)
    torch.testing.assert_close(arriving[1024.0], 1024.0 * arriving[1.0])
    for key, gradient in found[1.0].items():
        torch.testing.assert_close(found[1024.0][key], gradient, msg=key)


def test_a_teacher_that_is_not_routed_sees_all_channels_whatever_it_calls_channels():
    unet = UNet(3, in_channels=4, out_channels=4, channels=(4, 8), strides=(2,))
    seg = DiceJaccardCE()
    terms = {"seg": Term(seg), "teach": Term(seg, "teachers/all", inputs={"available": "available/all"})}
    distiller = make_distiller(group=CooperativeTeachers({"all": unet}), terms=terms)
    image, label = make_batch()
    whole, partly = torch.ones(2, 4), torch.tensor([[1.0, 1, 1, 0], [0, 1, 1, 1]])
    assert distiller(image, label, available=whole).terms["teach"] > 0
    assert distiller(image, label, available=partly).terms["teach"] == 0


def test_staged_refuses_what_it_cannot_run():
    with pytest.raises(ValueError, match="freeze is True"):
        make_distiller(staged=True, freeze=True, terms={"seg": Term(DiceJaccardCE())})
    unet = UNet(3, in_channels=1, out_channels=4, channels=(4, 8, 8), strides=(2, 2))
    group = CooperativeTeachers({"flair": RouteModalities(unet, [0])}, {}, {})
    with pytest.raises(ValueError, match=r"lower and top.*\['flair'\]"):
        make_distiller(names=("flair",), group=group, staged=True, terms={"seg": Term(DiceJaccardCE())})
    with pytest.raises(ValueError, match="decoder_3"):
        make_distiller(staged=True, group=make_group(levels=2))


# ---- modes ----------------------------------------------------------------------------------------------------------


def test_pretrained_teachers_keep_their_weights_and_have_no_gradient_buffers():
    terms = {name: term for name, term in make_terms().items() if not name.startswith(("seg_", "coop"))}
    distiller = make_distiller(terms=terms, freeze=True)
    before = copy.deepcopy(distiller.group.state_dict())
    optimizer = torch.optim.AdamW([p for p in distiller.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    distiller.train()
    distiller(*make_batch()).loss.backward()
    optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in distiller.group.parameters())
    assert all(torch.equal(value, before[key]) for key, value in distiller.group.state_dict().items())
    assert not any(key.startswith("teachers.") for key in distiller.state_dict())


def test_state_dict_has_the_students_bare_keys():
    distiller = make_distiller()
    bare = set(make_network().state_dict())
    own = {key for key in distiller.state_dict() if not key.startswith(("teachers.", "parts.", "losses."))}
    assert own == bare
    other = make_distiller(seed=5)
    other.load_state_dict(distiller.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(distiller.parameters(), other.parameters(), strict=True))


def test_teachers_train_alone_as_the_student_of_a_plain_distiller():
    group = make_group()
    terms = {f"seg_{name}": Term(DiceJaccardCE(), f"student/{name}", "label") for name in NAMES}
    terms["coop"] = Term(DiceJaccardCE(), "student/fused", "label", 0.08)
    distiller = Distiller(group, terms=terms)
    image, label = make_batch()
    output = distiller(image, label)
    output.loss.backward()
    assert all(p.grad is not None for p in group.parameters())
    probabilities = output.pred.softmax(dim=1)
    heads = group.heads(image)
    mean = sum(heads[name].softmax(dim=1) for name in NAMES) / 3
    torch.testing.assert_close(probabilities, mean)
    group.eval()
    assert isinstance(group(image), torch.Tensor)


def test_all_networks_start_alike_from_the_same_seed():
    def seeded():
        torch.manual_seed(3)
        return make_network()

    torch.manual_seed(3)
    network = make_network()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), seeded().parameters(), strict=True))


# ---- any number, any shape ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("t2",), ("flair", "t2"), ("a", "b", "c", "d")])
@pytest.mark.parametrize("dims", [2, 3])
def test_any_number_of_teachers_in_two_and_three_dimensions(names, dims):
    distiller = make_distiller(dims, names)
    output = distiller(*make_batch(dims, names))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert set(output.terms) == {"seg", "kd", "side_seg", "side_kd", "coop", *(f"seg_{name}" for name in names)}


def test_a_single_teacher_is_plain_distillation():
    names = ("flair",)
    distiller = make_distiller(names=names)
    image, label = make_batch(names=names)
    views = distiller.views(image, label)
    got = distiller.term_values(views)["kd"]
    torch.testing.assert_close(got, SoftLogitKL(4.0)(views["student/logits"], views["teachers/flair"]))


def test_teachers_of_other_architectures_and_a_smaller_student():
    torch.manual_seed(0)
    unet = UNet(3, in_channels=2, out_channels=4, channels=(4, 8, 16), strides=(2, 2))
    networks = {"pair": RouteModalities(unet, [0, 1]), "t1": RouteModalities(make_network(), [2])}
    fusion = CooperativeFusion(3, [4, 8], 4, reduction=4)
    group = CooperativeTeachers(networks, {"fused": fusion}, {"fused": {"pair": "decoder_1", "t1": "decoder_2"}})
    student = RouteModalities(UNet(3, in_channels=1, out_channels=4, channels=(2, 4, 8), strides=(2, 2)), [3])
    distiller = CooperativeDistiller(
        student, group, make_terms(("pair", "t1")), side_stages=("encoder_1",), input_shape=[1, 4, 16, 16, 16]
    )
    output = distiller(*make_batch())
    output.loss.backward()
    assert all(p.grad is not None for p in unet.parameters())


def test_two_levels_of_cooperation():
    terms = make_terms()
    terms["coop_2"] = Term(DiceJaccardCE(), "teachers/fused_2", "label", 0.05)
    terms["side_kd_2"] = Term(SoftLogitKL(4.0), "student/side_2", "teachers/fused_2", 0.012)
    distiller = make_distiller(terms=terms, group=make_group(levels=2), side_stages=("decoder_2", "decoder_3"))
    image, label = make_batch()
    views = distiller.views(image, label)
    assert views["teachers/fused_2"].shape == views["student/side_2"].shape == (2, 4, 4, 4, 4)


# ---- missing modalities ---------------------------------------------------------------------------------------------


def test_all_available_is_the_same_as_no_mask():
    distiller = make_distiller()
    image, label = make_batch()
    plain = distiller(image, label)
    masked = distiller(image, label, available=torch.ones(2, 4))
    torch.testing.assert_close(plain.loss, masked.loss)


def test_a_missing_modality_trains_neither_its_teacher_nor_the_student():
    distiller = make_distiller()
    image, label = make_batch(batch=1)
    available = torch.tensor([[1, 0, 1, 1]])
    distiller(image, label, available=available).loss.backward()
    t2 = distiller.group.networks["t2"].network
    assert all(p.grad is None or not p.grad.any() for p in t2.parameters())
    before = gradients(distiller.student)
    distiller.zero_grad()
    other = image.clone()
    other[:, 1] = 7.0
    distiller(other, label, available=available).loss.backward()
    for key, value in gradients(distiller.student).items():
        torch.testing.assert_close(value, before[key], msg=key)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"available has the shape \(2, 2\).*\(2, 4\)"):
        make_distiller()(*make_batch(), available=torch.ones(2, 2))


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_an_unknown_view_is_named_with_the_known_ones():
    terms = make_terms()
    terms["kd2"] = Term(SoftLogitKL(), "student/logits", "teachers/fussed")
    with pytest.raises(ValueError, match=r"'teachers/fussed'; known: .*teachers/fused"):
        make_distiller(terms=terms)


def test_side_heads_need_an_input_shape():
    with pytest.raises(ValueError, match="input_shape"):
        CooperativeDistiller(RouteModalities(make_network(), [3]), make_group(), make_terms())


def test_teachers_without_a_term_are_not_run():
    distiller = make_distiller(terms={"seg": Term(DiceJaccardCE())}, side_stages=())
    distiller.group.heads = None  # would raise if called
    assert torch.isfinite(distiller(*make_batch()).loss)
    # several processes wait for the gradient of everything that asks for one
    assert not any(parameter.requires_grad for parameter in distiller.group.parameters())


def test_names_of_teachers_and_fusions_are_checked():
    network = make_network()
    with pytest.raises(ValueError, match="at least one teacher"):
        CooperativeTeachers({})
    with pytest.raises(ValueError, match=r"\['flair'\]"):
        CooperativeTeachers({"flair": network}, {"flair": CooperativeFusion(3, [8], 4)}, {"flair": "decoder_2"})
    with pytest.raises(ValueError, match="give one for each"):
        CooperativeTeachers({"flair": network}, {"fused": CooperativeFusion(3, [8], 4)})
    with pytest.raises(ValueError, match=r"name \['t2'\], the teachers are \['flair'\]"):
        CooperativeTeachers({"flair": network}, {"fused": CooperativeFusion(3, [8], 4)}, {"fused": {"t2": "decoder_2"}})
    with pytest.raises(ValueError, match="decoder_9"):
        CooperativeTeachers({"flair": network}, {"fused": CooperativeFusion(3, [8], 4)}, {"fused": "decoder_9"})
