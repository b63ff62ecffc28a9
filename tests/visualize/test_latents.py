"""Latents in two dimensions: neighbors stay neighbors, and the numbers beside the picture are those of the latents."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from monai_kd.visualize import anchor_cosines, embed_latents, latents_figure, sample_cosine, view_silhouette

N = 12
VIEWS = ("anchor", "noise", "blur")


def latents(seed: int = 0, apart: float = 0.0) -> dict[str, NDArray[np.float64]]:
    """Three groups of 12 latents ``(4, 16)``: ``apart`` is between their means, in standard deviations along each."""
    rng = np.random.default_rng(seed)
    means = apart * rng.standard_normal((len(VIEWS), 4, 16))
    return {name: mean + rng.standard_normal((N, 4, 16)) for name, mean in zip(VIEWS, means, strict=True)}


def own_neighbors(points: dict[str, NDArray[np.float64]]) -> float:
    """Return how many of all points have a nearest neighbor of their own group, 0 to 1."""
    together = np.concatenate(list(points.values()))
    owners = np.repeat(np.arange(len(points)), [len(places) for places in points.values()])
    distances = np.linalg.norm(together[:, None] - together[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float((owners[distances.argmin(axis=1)] == owners).mean())


@pytest.fixture
def scikit_learn() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'monai_kd[latents]'")


# ---- points ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("scikit_learn")
class TestEmbedding:
    def test_the_same_seed_gives_the_same_points_in_the_order_given(self):
        one, two = (embed_latents(latents(), seed=3, perplexity=5) for _ in range(2))
        assert list(one) == list(VIEWS)
        for name, points in one.items():
            assert points.shape == (N, 2)
            np.testing.assert_array_equal(points, two[name])

    def test_separated_groups_stay_separated_and_mixed_ones_mixed(self):
        assert own_neighbors(embed_latents(latents(apart=3.0), perplexity=8)) == 1.0
        same = {name: latents()["anchor"] for name in VIEWS}
        # each point lies on its copies of the other groups
        assert own_neighbors(embed_latents(same, perplexity=8)) < 0.5

    def test_another_seed_gives_other_points_of_the_same_neighborhoods(self):
        one, other = (embed_latents(latents(apart=3.0), seed, perplexity=8) for seed in (0, 1))
        assert not np.allclose(one["anchor"], other["anchor"], atol=0.1)
        assert own_neighbors(other) == 1.0

    def test_the_scale_of_latents_does_not_count(self):
        small = {name: values / 2**20 for name, values in latents().items()}
        for name, points in embed_latents(latents(), perplexity=8).items():
            np.testing.assert_array_equal(points, embed_latents(small, perplexity=8)[name])

    def test_latents_of_one_number_are_embedded_too(self):
        groups = {name: values[:, 0, :1] + 100 * number for number, (name, values) in enumerate(latents().items())}
        assert own_neighbors(embed_latents(groups, perplexity=8)) == 1.0

    def test_groups_may_differ_in_length(self):
        groups = latents()
        groups["blur"] = groups["blur"][:5]
        assert [len(points) for points in embed_latents(groups, perplexity=5).values()] == [N, N, 5]

    @pytest.mark.parametrize("perplexity", [0.5, 12.0, float("nan")])
    def test_a_perplexity_that_does_not_fit_the_number_of_latents_is_refused(self, perplexity):
        with pytest.raises(ValueError, match=r"perplexity is \S+ for 36 latents; give 1 to 11.7"):
            embed_latents(latents(), perplexity=perplexity)

    def test_what_cannot_be_embedded_is_named(self):
        groups = latents()
        with pytest.raises(ValueError, match="groups is empty"):
            embed_latents({})
        with pytest.raises(ValueError, match="all 36 latents are the same"):
            embed_latents({name: np.ones((N, 4)) for name in VIEWS}, perplexity=5)
        with pytest.raises(ValueError, match=r"'blur' has latents \(4, 8\), the first group \(4, 16\)"):
            embed_latents({**groups, "blur": groups["blur"][..., :8]}, perplexity=5)
        with pytest.raises(ValueError, match=r"'blur' has the shape \(12,\)"):
            embed_latents({**groups, "blur": np.ones(N)}, perplexity=5)
        groups["noise"][4, 0, 0] = np.nan
        with pytest.raises(ValueError, match="'noise': 1 of 12 latents hold numbers that are not finite"):
            embed_latents(groups, perplexity=5)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    for module in ("sklearn", "sklearn.manifold", "sklearn.metrics"):
        monkeypatch.setitem(sys.modules, module, None)
    for use in (embed_latents, view_silhouette):
        with pytest.raises(ImportError, match=r"scikit-learn: pip install 'monai_kd\[latents\]'"):
            use(latents())


# ---- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("scikit_learn")
class TestSilhouette:
    def test_by_hand(self):
        # own distance 1 everywhere; the other group is 9 and 10, or 10 and 11 away
        groups = {"anchor": np.array([[0.0], [1.0]]), "noise": np.array([[10.0], [11.0]])}
        assert view_silhouette(groups) == pytest.approx(np.mean([1 - 1 / 10.5, 1 - 1 / 9.5]))

    def test_tells_views_that_stand_apart_from_views_that_do_not(self):
        assert view_silhouette(latents(apart=3.0)) > 0.5
        assert abs(view_silhouette(latents())) < 0.05
        same = {name: latents()["anchor"] for name in VIEWS}
        assert view_silhouette(same) < 0

    def test_needs_two_groups(self):
        with pytest.raises(ValueError, match="one group alone, 'anchor'"):
            view_silhouette({"anchor": latents()["anchor"]})


def test_cosine_of_each_view_with_the_anchor_by_hand():
    anchor = np.array([[[1.0, 0.0]], [[0.0, 2.0]]])
    turned, half = np.array([[[0.0, 5.0]], [[3.0, 0.0]]]), np.array([[[3.0, 0.0]], [[1.0, 0.0]]])
    found = anchor_cosines({"anchor": anchor, "copy": 7 * anchor, "turned": turned, "half": half, "zero": 0 * anchor})
    assert found == pytest.approx({"copy": 1.0, "turned": 0.0, "half": 0.5, "zero": 0.0})


def test_cosine_of_different_samples_by_hand():
    # pairs: 0, cos 45 and cos 45 degrees
    assert sample_cosine([[1.0, 0.0], [0.0, 3.0], [2.0, 2.0]]) == pytest.approx(2 * np.sqrt(0.5) / 3)
    with pytest.raises(ValueError, match="one sample alone"):
        sample_cosine(np.ones((1, 4)))


def test_cosines_of_other_samples_are_refused():
    groups = latents()
    with pytest.raises(ValueError, match="'blur': 5}"):
        anchor_cosines({**groups, "blur": groups["blur"][:5]})


# ---- the picture ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("scikit_learn")
class TestFigure:
    @pytest.fixture(autouse=True)
    def matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_a_panel_for_each_network_and_a_color_for_each_view(self):
        figure = latents_figure({"teacher": latents(apart=3.0), "student": latents(1)}, perplexity=5)
        assert [panel.get_title(loc="left") for panel in figure.axes] == ["teacher", "student"]
        for panel in figure.axes:
            assert [len(drawn.get_offsets()) for drawn in panel.collections] == [N] * len(VIEWS)
        colors = [tuple(drawn.get_facecolor()[0]) for drawn in figure.axes[0].collections]
        assert len(set(colors)) == len(VIEWS)
        assert colors == [tuple(drawn.get_facecolor()[0]) for drawn in figure.axes[1].collections]
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == list(VIEWS)

    def test_points_are_those_of_the_embedding(self):
        groups = latents()
        (panel,) = latents_figure({"teacher": groups}, seed=2, perplexity=5).axes
        for drawn, points in zip(panel.collections, embed_latents(groups, 2, 5).values(), strict=True):
            np.testing.assert_allclose(drawn.get_offsets(), points)

    def test_numbers_of_the_latents_stand_above_each_panel(self):
        panels = {"teacher": latents(apart=3.0), "student": latents(1)}
        figure = latents_figure(panels, perplexity=5)
        for panel, groups in zip(figure.axes, panels.values(), strict=True):
            cosine = np.mean(list(anchor_cosines(groups).values()))
            others = sample_cosine(groups["anchor"])
            assert [text.get_text() for text in panel.texts] == [
                f"silhouette {view_silhouette(groups):+.3f}, cosine {cosine:.3f} (samples {others:.3f})"
            ]

    def test_domains_have_shapes_of_their_own(self):
        domains = ["CHASE_DB1"] * 8 + ["STARE"] * 4
        figure = latents_figure({"teacher": latents()}, domains, perplexity=5)
        assert [len(drawn.get_offsets()) for drawn in figure.axes[0].collections] == [8, 4] * len(VIEWS)
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [*VIEWS, "CHASE_DB1", "STARE"]

    def test_the_legend_lies_within_the_figure_and_below_its_panels(self):
        figure = latents_figure({"teacher": latents()}, ["a domain with a long name"] * N, perplexity=5)
        figure.canvas.draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 < box.y1 <= min(panel.get_tightbbox().y0 for panel in figure.axes) + 1

    def test_panels_that_do_not_fit_each_other_are_refused(self):
        groups = latents()
        with pytest.raises(ValueError, match="panels is empty"):
            latents_figure({})
        with pytest.raises(ValueError, match="panel 'student' has the groups"):
            latents_figure({"teacher": groups, "student": {**groups, "more": groups["blur"]}})
        with pytest.raises(ValueError, match="'blur': 5}"):
            latents_figure({"teacher": {**groups, "blur": groups["blur"][:5]}})
        with pytest.raises(ValueError, match="there are 9 groups"):
            latents_figure({"teacher": {str(number): groups["blur"] for number in range(9)}})
        with pytest.raises(ValueError, match="domains names 3 samples, panel 'teacher' has 12"):
            latents_figure({"teacher": groups}, ["a", "b", "c"])
        with pytest.raises(ValueError, match="domains names 7 domains"):
            latents_figure({"teacher": groups}, [str(number % 7) for number in range(N)])
