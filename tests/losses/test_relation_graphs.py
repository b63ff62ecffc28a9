"""StarGraph and CompleteGraph: values by hand, what cosines do not see, and graphs without edges."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from monai_kd.distillers import Term
from monai_kd.losses import CompleteGraph, StarGraph

GRAPHS = [StarGraph, CompleteGraph]
SETTINGS = [(form, scope) for form in ("mse", "contrastive") for scope in ("views", "batch")]
# one sample: an anchor and three views at known angles, in two and in three dimensions
STUDENT = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]])
TEACHER = torch.tensor([[[0.0, 2.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 5.0, 0.0]]])


def latents(batch=3, views=5, shape=(6, 4), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, views, *shape, generator=generator, dtype=dtype)


def literal_edges(vectors, star, scope):
    """Each node's cosines by two loops."""
    flat = vectors.flatten(2)
    batch, views = flat.shape[:2]
    samples = range(batch)
    rows = []
    groups = [[b] for b in samples] if scope == "views" else [list(samples)]
    for group in groups:
        leaves = [flat[b, n] for b in group for n in range(1, views)]
        nodes = [flat[b, 0] for b in group] if star else leaves
        for place, node in enumerate(nodes):
            others = leaves if star else leaves[:place] + leaves[place + 1 :]
            rows.append(torch.stack([F.cosine_similarity(node, other, dim=0) for other in others]))
    return torch.stack(rows)


# ---- values ---------------------------------------------------------------------------------------------------------


def test_star_by_hand():
    # cosines with the anchor: student 1, 0, -1; teacher 1/sqrt(2), 0, 1
    expected = ((1 - math.sqrt(0.5)) ** 2 + 0 + 4) / 3
    assert StarGraph()(STUDENT, TEACHER).item() == pytest.approx(expected, abs=1e-6)


def test_complete_by_hand():
    # among the views: student 0, -1, 0; teacher 0, 1/sqrt(2), 0
    expected = (0 + (-1 - math.sqrt(0.5)) ** 2 + 0) / 3
    assert CompleteGraph()(STUDENT, TEACHER).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("form", "scope"), SETTINGS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_what_all_latents_share_hides_their_relations_unless_it_is_taken_out(graph, form, scope):
    student, teacher, common = latents(seed=0), latents(seed=1), 100 * latents(1, 1, seed=2)
    plain, centered = graph(form, scope=scope), graph(form, scope=scope, center=True)
    assert plain(student + common, teacher + common) < 1e-3 * plain(student, teacher)
    found = centered(student + common, teacher - 3 * common)
    assert found.item() == pytest.approx(centered(student, teacher).item(), rel=1e-3)
    means = [values - values.mean(dim=(0, 1), keepdim=True) for values in (student, teacher)]
    assert centered(student, teacher).item() == pytest.approx(plain(*means).item(), rel=1e-5)


def test_contrastive_star_by_hand():
    # two views at cosines 1 and 0 (student), 0 and 1 (teacher), temperature 1: p = e / (1 + e) against its reverse
    student = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    p = math.e / (1 + math.e)
    expected = p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)
    value = StarGraph("contrastive", tau=1.0)(student, student[:, [0, 2, 1]])
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("form", "scope"), SETTINGS)
def test_edges_are_those_of_two_loops(graph, form, scope):
    student, teacher = latents(), latents(shape=(3, 2, 5), seed=1)
    own, target = (literal_edges(value, graph is StarGraph, scope) for value in (student, teacher))
    if form == "mse":
        expected = (own - target).square().mean()
    else:
        expected = F.kl_div((own / 0.2).log_softmax(1), (target / 0.2).softmax(1), reduction="batchmean")
    torch.testing.assert_close(graph(form, 0.2, scope)(student, teacher), expected, rtol=1e-10, atol=1e-12)


# ---- what cosines do not see ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("form", "scope"), SETTINGS)
class TestEverySetting:
    def test_zero_when_student_equals_teacher(self, graph, form, scope):
        vectors = latents(dtype=torch.float32)
        assert graph(form, scope=scope)(vectors, vectors.clone()).item() == 0.0

    def test_zero_for_any_common_rotation_and_any_factor_of_each_vector(self, graph, form, scope):
        teacher = latents(shape=(24,))
        rotation, _ = torch.linalg.qr(latents(24, 24, (), seed=2))
        factors = latents(shape=(1,), seed=3).exp()
        value = graph(form, scope=scope)(factors * (teacher @ rotation), teacher)
        assert value.item() == pytest.approx(0.0, abs=1e-12)
        assert graph(form, scope=scope)(latents(shape=(24,), seed=4), teacher).item() > 1e-3

    def test_order_of_the_views_does_not_matter_but_the_anchor_does(self, graph, form, scope):
        student, teacher = latents(), latents(seed=1)
        loss = graph(form, scope=scope)
        order = [0, 3, 1, 4, 2]
        torch.testing.assert_close(loss(student[:, order], teacher[:, order]), loss(student, teacher))
        other_anchor = [1, 0, 2, 3, 4]
        assert loss(student[:, other_anchor], teacher[:, other_anchor]) != loss(student, teacher)
        if scope == "batch":
            torch.testing.assert_close(loss(student[[2, 0, 1]], teacher[[2, 0, 1]]), loss(student, teacher))

    def test_gradient_reaches_the_student_only_and_is_exact(self, graph, form, scope):
        student, teacher = (latents(2, 4, (3,), seed).requires_grad_() for seed in (0, 1))
        loss = graph(form, 0.5, scope)
        loss(student, teacher).backward()
        assert teacher.grad is None
        # the anchor is no node of the complete graph
        assert [bool(part.any()) for part in student.grad.unbind(1)] == [graph is StarGraph, True, True, True]
        assert gradcheck(lambda value: loss(value, teacher.detach()), student)

    def test_latents_need_not_have_the_teacher_s_size(self, graph, form, scope):
        student, teacher = latents(shape=(2, 3)), latents(shape=(40,), seed=1)
        value = graph(form, scope=scope)(student, teacher)
        assert value.shape == ()
        assert value.item() > 0
        torch.testing.assert_close(graph(form, scope=scope)(student.flatten(2), teacher), value)

    def test_zero_vectors_are_finite_and_get_no_gradient(self, graph, form, scope):
        student, teacher = latents(), latents(seed=1)
        student[0, 1], teacher[1, 2] = 0.0, 0.0
        student[2] = 0.0
        value = graph(form, scope=scope)(student.requires_grad_(), teacher)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(student.grad).all()
        assert not student.grad[2].any()
        assert not student.grad[0, 1].any()
        assert student.grad[1].any()

    def test_float32_inside_autocast_and_of_half_precision(self, graph, form, scope):
        student, teacher = latents(dtype=torch.float32), latents(seed=1, dtype=torch.float32)
        loss = graph(form, scope=scope)
        with torch.autocast("cpu", torch.bfloat16):
            inside = loss(student, teacher)
        assert inside.dtype == torch.float32
        assert inside.item() == loss(student, teacher).item()
        for kind in (torch.bfloat16, torch.float16):
            half = student.to(kind).requires_grad_()
            value = loss(half, teacher.to(kind))
            value.backward()
            assert value.item() == loss(student.to(kind).float(), teacher.to(kind).float()).item()
            assert torch.isfinite(half.grad).all()

    def test_a_single_sample_is_the_same_in_both_scopes(self, graph, form, scope):
        student, teacher = latents(1), latents(1, seed=1)
        torch.testing.assert_close(
            graph(form, scope=scope)(student, teacher), graph(form, scope="views")(student, teacher)
        )


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("form", ["mse", "contrastive"])
def test_a_graph_for_each_sample_does_not_depend_on_how_many_like_samples_there_are(graph, form):
    student, teacher = latents(), latents(seed=1)
    twice = graph(form)(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1))
    torch.testing.assert_close(twice, graph(form)(student, teacher))


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_setting_changes_the_value(graph):
    student, teacher = latents(), latents(seed=1)
    made = [("mse", 0.1, "views"), ("mse", 0.1, "batch"), ("contrastive", 0.1, "views"), ("contrastive", 0.5, "views")]
    values = [graph(*settings)(student, teacher).item() for settings in made]
    assert len({round(value, 9) for value in values}) == len(values)


@pytest.mark.parametrize("scope", ["views", "batch"])
def test_other_samples_are_negatives_in_the_scope_batch_only(scope):
    student, teacher = latents(2), latents(2, seed=1)
    loss = StarGraph("contrastive", scope=scope)
    before = torch.autograd.grad(loss(student.requires_grad_(), teacher), student)[0]
    changed = student.detach().clone()
    changed[1, 1:] += 1
    after = torch.autograd.grad(loss(changed.requires_grad_(), teacher), changed)[0]
    assert torch.allclose(before[0], after[0]) == (scope == "views")


def test_settings_are_shown():
    assert str(StarGraph()) == "StarGraph(form='mse', scope='views')"
    assert str(CompleteGraph("contrastive", 0.2, "batch")) == (
        "CompleteGraph(form='contrastive', tau=0.2, scope='batch')"
    )


# ---- graphs with too few edges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["mse", "contrastive"])
def test_one_view_makes_the_complete_graph_empty_and_the_loss_zero_with_a_gradient(form):
    student, teacher = latents(views=2).requires_grad_(), latents(views=2, seed=1)
    with pytest.warns(UserWarning, match="0 edges at a node: there is nothing to compare, the loss is 0"):
        value = CompleteGraph(form)(student, teacher)
    value.backward()
    assert value.item() == 0
    assert not student.grad.any()
    # the views of other samples are edges
    assert CompleteGraph(form, scope="batch")(student, teacher).item() > 0


@pytest.mark.parametrize(("graph", "views"), [(StarGraph, 2), (CompleteGraph, 3)])
def test_a_softmax_over_one_edge_is_told_once(graph, views):
    student, teacher = latents(views=views), latents(views=views, seed=1)
    loss = graph("contrastive")
    with pytest.warns(UserWarning, match="1 edges at a node: a softmax over one is always 1, the loss is 0"):
        assert loss(student, teacher).item() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(student, teacher)
        assert graph("mse")(student, teacher).item() > 0


def test_a_term_takes_latents_of_any_number_of_axes():
    views = {"student/latents": latents(dtype=torch.float32), "teacher/latents": latents(seed=1, dtype=torch.float32)}
    for graph in GRAPHS:
        assert Term(graph(), "student/latents", "teacher/latents")(views).item() > 0


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", GRAPHS)
def test_what_does_not_fit_is_named(graph):
    loss = graph()
    with pytest.raises(ValueError, match=r"\(3, 5, 6, 4\) and teacher latents \(3, 4, 6, 4\) must both be \(batch, v"):
        loss(latents(), latents(views=4))
    with pytest.raises(ValueError, match=r"\(2, 5, 6, 4\) and teacher latents \(3, 5, 6, 4\) must both be"):
        loss(latents(2), latents())
    with pytest.raises(ValueError, match=r"student latents \(3, 5\)"):
        loss(latents(shape=()), latents(shape=()))
    with pytest.raises(ValueError, match="hold one view; a graph needs the anchor and at least one view more"):
        loss(latents(views=1), latents(views=1))
    with pytest.raises(ValueError, match="form is 'kl'; known: mse, contrastive"):
        graph("kl")
    with pytest.raises(ValueError, match="scope is 'sample'; known: views, batch"):
        graph(scope="sample")
    with pytest.raises(ValueError, match="tau is 0; it must be a finite number above 0"):
        graph(tau=0)
