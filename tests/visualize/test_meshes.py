"""Surfaces: a sphere keeps its volume and place under any affine, borders are closed, files re-load as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trimesh", reason="pip install 'monai_kd[viewer]'")
pytest.importorskip("skimage")

import trimesh

from monai_kd.visualize.meshes import GLTF_FROM_RAS, fewer_triangles, structure_mesh, write_scene, write_stl

CENTER_MM = np.array([31.3, -12.1, 57.7])


def turned(spacing: tuple[float, float, float]) -> np.ndarray:
    """A grid of a spacing, turned by 30 degrees around z and then by 20 around x."""
    a, b = np.radians(30), np.radians(20)
    around_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    around_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return around_x @ around_z @ np.diag(spacing)


GRIDS = {
    "even": np.diag([1.0, 1.0, 1.0]),
    "thick slices": np.diag([0.7, 0.7, 3.0]),
    "left-handed": np.diag([-0.7, 0.7, 3.0]),
    "oblique": turned((0.9, 0.9, 2.0)),
    "axes swapped": np.array([[0.0, 0.0, 1.5], [-1.0, 0.0, 0.0], [0.0, 0.8, 0.0]]),
    "sheared": np.array([[1.0, 0.2, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.5]]),
}


def sphere(axes: np.ndarray, radius_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """A ball around CENTER_MM, no voxel at its very center, and the affine of its grid."""
    half = np.ceil((radius_mm + 2) * np.linalg.norm(np.linalg.inv(axes), axis=1)).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = CENTER_MM - axes @ np.add(half, (0.21, 0.37, -0.4))
    voxels = np.stack(np.meshgrid(*[np.arange(2 * size + 1) for size in half], indexing="ij"), -1)
    distance = np.linalg.norm(voxels @ axes.T + affine[:3, 3] - CENTER_MM, axis=-1)
    return distance <= radius_mm, affine


@pytest.mark.parametrize("radius_mm", [10.0, 20.0])  # a sphere of 20 mm, by its diameter and by its radius
@pytest.mark.parametrize("grid", GRIDS)
def test_sphere_keeps_its_volume_and_its_place(grid: str, radius_mm: float) -> None:
    mask, affine = sphere(GRIDS[grid], radius_mm)
    mesh = structure_mesh(mask, affine)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * radius_mm**3, rel=0.02)  # positive: normals point outward
    off_voxels = np.linalg.solve(affine[:3, :3], mesh.center_mass - CENTER_MM)
    assert np.abs(off_voxels).max() < 0.1
    assert mesh.bounds == pytest.approx(
        np.array([CENTER_MM - radius_mm, CENTER_MM + radius_mm]), abs=2.0
    )  # half a slice


def test_volume_is_that_of_the_voxels_at_any_smoothing() -> None:
    mask = np.random.default_rng(0).random((12, 12, 12)) < 0.3  # nothing but corners and diagonal neighbors
    for smoothing in (0, 30):
        mesh = structure_mesh(mask, np.diag([2.0, 1.0, 1.0, 1.0]), smoothing)
        assert mesh.is_watertight
        assert mesh.volume == pytest.approx(2.0 * mask.sum(), rel=0.002)


def test_smoothing_makes_a_sphere_rounder() -> None:
    mask, affine = sphere(GRIDS["even"], 10.0)
    roughness = [
        np.linalg.norm(structure_mesh(mask, affine, rounds).vertices - CENTER_MM, axis=1).std() for rounds in (0, 5, 30)
    ]
    assert roughness[0] > 1.2 * roughness[1] > 1.2 * roughness[2]


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 20), (1, 20, 20)])
def test_a_voxel_a_line_and_a_sheet_survive(size: tuple[int, int, int]) -> None:
    mesh = structure_mesh(np.pad(np.ones(size), 2), np.eye(4))
    assert mesh.volume == pytest.approx(np.prod(size), rel=0.05)
    assert mesh.bounds[0] == pytest.approx([1.5, 1.5, 1.5], abs=0.6)  # half a voxel before the first one
    assert mesh.bounds[1] == pytest.approx(np.array(size) + 1.5, abs=0.6)


def test_mask_up_to_the_border_is_closed() -> None:
    mesh = structure_mesh(np.ones((6, 5, 4)), np.eye(4), smoothing=0)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(120, rel=0.001)
    assert mesh.bounds == pytest.approx(np.array([[-0.5, -0.5, -0.5], [5.5, 4.5, 3.5]]), abs=0.1)


@pytest.mark.parametrize(
    ("mask", "affine", "smoothing", "message"),
    [
        (np.zeros((3, 3, 3)), np.eye(4), 0, "the mask is empty"),
        (np.ones((3, 3)), np.eye(4), 0, r"the mask has the shape \(3, 3\)"),
        (np.ones((3, 3, 3)), np.diag([1, 1, 0, 1]), 0, "affine must be 4 x 4 and invertible"),
        (np.ones((3, 3, 3)), np.eye(4), -1, "smoothing is -1"),
    ],
)
def test_what_has_no_surface_is_named(mask, affine, smoothing, message) -> None:
    with pytest.raises(ValueError, match=message):
        structure_mesh(mask, affine, smoothing)


def test_fewer_triangles_keep_the_volume_and_are_fewer() -> None:
    pytest.importorskip("fast_simplification")
    meshes = {f"prediction/{radius}": structure_mesh(*sphere(GRIDS["even"], radius)) for radius in (6.0, 10.0)}
    light = fewer_triangles(meshes, 2000)
    assert sum(len(mesh.faces) for mesh in light.values()) <= 2000
    for name, mesh in meshes.items():
        assert light[name].volume == pytest.approx(mesh.volume, rel=0.01)
        assert len(light[name].faces) / len(mesh.faces) == pytest.approx(2000 / 5212, rel=0.1)
    assert fewer_triangles(meshes, 10**6) == meshes


def test_stl_files_hold_millimeters_and_say_whose_surface_it_is(tmp_path: Path) -> None:
    mesh = structure_mesh(*sphere(GRIDS["oblique"], 10.0))
    meshes = {"prediction/whole tumor": mesh, "prediction/a/b": mesh, "truth/whole tumor": mesh}
    paths = write_stl(tmp_path / "meshes", meshes)
    assert [path.name for path in paths] == [
        *("prediction_1_whole_tumor.stl", "prediction_2_a_b.stl", "truth_1_whole_tumor.stl")
    ]
    loaded = trimesh.load_mesh(paths[0])
    assert loaded.volume == pytest.approx(mesh.volume, rel=1e-4)
    assert loaded.center_mass == pytest.approx(CENTER_MM, abs=0.2)


def test_scene_is_in_meters_and_upright_by_the_standard(tmp_path: Path) -> None:
    mesh = structure_mesh(*sphere(GRIDS["thick slices"], 10.0))
    names = ("prediction/whole tumor", "truth/whole tumor")
    colors = {names[0]: "#ff8000", names[1]: "#ffcc99"}
    path = write_scene(tmp_path / "scene.glb", dict.fromkeys(names, mesh), colors)
    scene = trimesh.load_scene(path)
    assert set(scene.graph.nodes_geometry) == set(names)
    right, front, up = CENTER_MM / 1000
    for name in names:
        matrix, geometry = scene.graph[name]
        placed = scene.geometry[geometry].copy()
        assert placed.center_mass == pytest.approx(CENTER_MM, abs=0.3)  # below the matrix still RAS+ millimeters
        placed.apply_transform(matrix)
        assert placed.volume == pytest.approx(4 / 3 * np.pi * 0.01**3, rel=0.02)  # not mirrored: positive
        assert placed.center_mass == pytest.approx([-right, up, front], abs=3e-4)
    materials = {name: scene.geometry[scene.graph[name][1]].visual.material for name in names}
    assert materials[names[0]].baseColorFactor.tolist() == [255, 128, 0, 255]
    assert materials[names[1]].alphaMode == "BLEND"
    assert np.linalg.det(GLTF_FROM_RAS[:3, :3]) == pytest.approx(1e-9)


def test_scene_without_a_surface_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no surface"):
        write_scene(tmp_path / "scene.glb", {}, {})
