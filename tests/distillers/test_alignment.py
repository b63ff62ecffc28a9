"""Training of alignment networks: its terms fall, latents of the networks meet, and what is frozen stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from two_halves import MaskLatent, TwoHalves, alignment, batch

from monai_kd.distillers import AlignmentDistiller, Term
from monai_kd.losses import CosineDistance, RelativeSquaredError, SoftLogitKL


def make(view: float = 0.0, seed: int = 0) -> AlignmentDistiller:
    torch.manual_seed(seed)
    terms = {}
    for name in ("teacher", "scratch"):
        terms[f"{name}_features"] = Term(RelativeSquaredError(), f"{name}/aligned", f"{name}/features")
        terms[f"{name}_semantic"] = Term(CosineDistance(), f"{name}/latent", "semantic/latent")
        terms[f"{name}_prediction"] = Term(SoftLogitKL(1.0), f"{name}/aligned_logits", f"{name}/logits")
        if view:
            terms[f"{name}_view"] = Term(CosineDistance(), f"{name}/view_latent", f"{name}/image_latent", view)
    networks = {"teacher": TwoHalves(5), "scratch": TwoHalves(3)}
    alignments = {"teacher": alignment(10), "scratch": alignment(6)}
    return AlignmentDistiller(alignments, networks, MaskLatent(), terms)


def between(distiller: AlignmentDistiller) -> float:
    """Return the mean cosine of the networks' latents of an image, after the mean over images is taken away.

    Latents of untrained networks resemble each other by the last layer's bias, which says nothing of the image.
    """
    with torch.no_grad():
        views = distiller.views(**batch(samples=4))
    latents = [views[f"{name}/image_latent"].flatten(1) for name in ("teacher", "scratch")]
    own, other = (latent - latent.mean(dim=0) for latent in latents)
    return float(torch.cosine_similarity(own, other).mean())


def test_all_terms_fall_and_the_networks_latents_meet():
    distiller, data = make(), batch(samples=4)
    before = {name: [v.clone() for v in m.state_dict().values()] for name, m in distiller.frozen_teachers.items()}
    first, apart = distiller(**data), between(distiller)
    optimizer = torch.optim.Adam(distiller.parameters(), lr=1e-2)
    distiller.train()
    for _ in range(150):
        optimizer.zero_grad()
        distiller(**data).loss.backward()
        optimizer.step()
    last = distiller(**data)
    assert all(last.terms[name] < first.terms[name] for name in first.terms)
    assert between(distiller) > apart + 0.4
    for name, module in distiller.frozen_teachers.items():
        assert not module.training
        for value, earlier in zip(module.state_dict().values(), before[name], strict=True):
            assert torch.equal(value, earlier), name


def test_image_and_in_evaluation_the_first_view_are_both_aligned():
    distiller, data = make().eval(), batch(samples=2, views=3)
    both = distiller.views(**data)
    assert both["teacher/latent"].shape[0] == both["label"].shape[0] == both["semantic/latent"].shape[0] == 4
    image = distiller.views(data["image"], data["label"])
    view = distiller.views(data["views"][:, 0], data["label"])
    for name in ("teacher", "scratch"):
        torch.testing.assert_close(both[f"{name}/image_latent"], image[f"{name}/latent"])
        torch.testing.assert_close(both[f"{name}/view_latent"], view[f"{name}/latent"])
        torch.testing.assert_close(both[f"{name}/aligned_logits"][2:], view[f"{name}/aligned_logits"])


def test_in_training_the_view_is_drawn_and_a_seed_draws_the_same():
    distiller, data = make(), batch(samples=2, views=3)
    of_views = [distiller.views(data["views"][:, n], data["label"])["teacher/latent"] for n in range(3)]

    def drawn(seed: int) -> list[int]:
        torch.manual_seed(seed)
        found = [distiller.views(**data)["teacher/view_latent"] for _ in range(12)]
        return [next(n for n in range(3) if torch.allclose(latent, of_views[n], atol=1e-6)) for latent in found]

    assert drawn(0) == drawn(0) != drawn(1)
    assert set(drawn(0)) == {0, 1, 2}


def test_the_consistency_term_leaves_the_image_alone():
    distiller = make(view=1.0)
    views = distiller.views(**batch())
    kept = views["teacher/image_latent"] = views["teacher/image_latent"].detach().requires_grad_()
    distiller.term_values(views)["teacher_view"].backward()
    assert kept.grad is None


def test_the_semantic_latent_depends_on_the_label_alone():
    distiller, data = make(), batch()
    other = {**data, "image": -data["image"]}
    assert torch.equal(distiller.views(**data)["semantic/latent"], distiller.views(**other)["semantic/latent"])


def test_each_network_trains_its_own_alignment():
    distiller = make()
    for name, other in (("teacher", "scratch"), ("scratch", "teacher")):
        distiller.zero_grad()
        values = distiller.term_values(distiller.views(**batch()))
        (values[f"{name}_features"] + values[f"{name}_semantic"] + values[f"{name}_prediction"]).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in distiller.student[name].parameters())
        assert all(p.grad is None for p in distiller.student[other].parameters())


def test_the_view_term_changes_the_loss_and_needs_views():
    data = batch()
    assert float(make(view=1.0)(**data).loss) > float(make()(**data).loss)
    with pytest.raises(ValueError, match=r"term 'teacher_view' reads \['teacher/view_latent'\]"):
        make(view=1.0)(data["image"], data["label"])


def test_what_is_saved_is_the_alignment_networks():
    distiller = make()
    assert {key.partition(".")[0] for key in distiller.state_dict()} == {"teacher", "scratch"}
    assert distiller(**batch()).pred.shape == (2, 2, 16, 16)


def test_what_does_not_fit_is_refused():
    networks, bridge = {"teacher": TwoHalves(5)}, {"teacher": alignment(10)}
    terms = {"features": Term(RelativeSquaredError(), "teacher/aligned", "teacher/features")}
    with pytest.raises(ValueError, match=r"alignments are for \['student'\]; give one for each of teacher"):
        AlignmentDistiller({"student": alignment(10)}, networks, MaskLatent(), terms)
    with pytest.raises(TypeError, match=r"autoencoder is a Identity without a method latent\(label\)"):
        AlignmentDistiller(bridge, networks, nn.Identity(), terms)
    with pytest.raises(TypeError, match="network 'teacher' is a Identity without encode and decode"):
        AlignmentDistiller(bridge, {"teacher": nn.Identity()}, MaskLatent(), terms)
    with pytest.raises(ValueError, match="the batch has no label"):
        AlignmentDistiller(bridge, networks, MaskLatent(), terms).views(batch()["image"], None)
    wrong = {"features": Term(RelativeSquaredError(), "teacher/aligned", "teacher/feature")}
    with pytest.raises(ValueError, match=r"reads 'teacher/feature'; known: label, student/logits, semantic/latent"):
        AlignmentDistiller(bridge, networks, MaskLatent(), wrong)
