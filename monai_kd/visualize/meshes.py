"""Surfaces of label maps in millimeters, as STL files and one GLB scene."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.utils import optional_import
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from trimesh import Trimesh

__all__ = ["GLTF_FROM_RAS", "fewer_triangles", "structure_mesh", "viewer_package", "write_scene", "write_stl"]

# glTF has meters, +Y up, and what faces the viewer along +Z: superior is up and anterior is in front
GLTF_FROM_RAS = np.array(
    [[-0.001, 0.0, 0.0, 0.0], [0.0, 0.0, 0.001, 0.0], [0.0, 0.001, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
# not 0.5: between voxels of 0 and 1 that is a tie, and surfaces of diagonal neighbors would share edges
_LEVEL = 0.49
_PASS_BAND = (0.5, 0.53)  # Taubin's two steps, inward and outward
_ROOM = 0.25  # voxels that smoothing may move a vertex along each axis, or voxels that stand alone would vanish
_VOLUME_TOLERANCE = 1.0e-3
_MOST_ROUNDS = 12


def structure_mesh(mask: ArrayLike, affine: ArrayLike, smoothing: int = 30) -> Trimesh:
    """Return the closed surface of a mask, smooth, with the volume of its voxels and normals that point outward.

    Marching cubes on the mask, then Taubin's smoothing, which moves no vertex by more than a quarter voxel per axis;
    last the surface is moved along its normals until it holds the voxels' volume again, to 0.1 %. A mask that touches
    the border of its volume is closed there, half a voxel outside.

    Args:
        mask: ``(X, Y, Z)``, nonzero inside.
        affine: 4 x 4, voxel index to RAS+ millimeters (NIfTI); any orientation, spacing, shear and handedness.
        smoothing: rounds of Taubin's smoothing, 0 or more; 0 shows every voxel's step.

    Returns:
        A surface in RAS+ millimeters.

    Raises:
        ValueError: the mask is empty or not 3-D, the affine cannot be inverted, or ``smoothing`` is negative.
        ImportError: scikit-image or trimesh is missing.
    """
    inside, to_mm = np.asarray(mask) != 0, np.asarray(affine, dtype=float)
    if inside.ndim != 3 or not inside.any():
        what = "is empty" if inside.ndim == 3 else f"has the shape {inside.shape}"
        raise ValueError(f"the mask {what}; a surface needs a mask (X, Y, Z) with at least one voxel")
    if to_mm.shape != (4, 4) or not abs(np.linalg.det(to_mm)) > 0:
        raise ValueError(f"affine must be 4 x 4 and invertible, got {to_mm.tolist()}")
    if smoothing < 0:
        raise ValueError(f"smoothing is {smoothing}; it must be 0 or more rounds")
    trimesh, filters = viewer_package("trimesh"), viewer_package("trimesh.smoothing")
    corners, faces = _voxel_surface(inside)
    if np.linalg.det(to_mm[:3, :3]) > 0:  # scikit-image winds them the other way round
        faces = faces[:, ::-1]
    moved = trimesh.Trimesh(corners, faces, process=False)
    if smoothing:  # commutes with the affine: both are linear
        filters.filter_taubin(moved, *_PASS_BAND, iterations=smoothing)
    corners = corners + np.clip(np.asarray(moved.vertices) - corners, -_ROOM, _ROOM)
    mesh = trimesh.Trimesh(corners @ to_mm[:3, :3].T + to_mm[:3, 3], faces, process=False)
    _restore_volume(mesh, int(inside.sum()) * abs(float(np.linalg.det(to_mm[:3, :3]))), to_mm)
    return mesh


def _voxel_surface(inside: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vertices in voxel indices and faces of the mask's surface, found in its bounding box alone."""
    marching_cubes = viewer_package("skimage.measure").marching_cubes
    spans = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    vertices, faces, _, _ = marching_cubes(np.pad(inside[box], 1).astype(np.float32), _LEVEL)
    return vertices + np.array([part.start - 1 for part in box], dtype=float), faces.astype(np.int64)


def _restore_volume(mesh: Trimesh, target_mm3: float, affine: NDArray[np.float64]) -> None:
    """Move the surface along its normals until it holds a volume; by little at a time, so that it stays simple."""
    step_mm = _ROOM * float(np.linalg.norm(affine[:3, :3], axis=0).min())
    for _ in range(_MOST_ROUNDS):
        lacking = target_mm3 - float(mesh.volume)
        if abs(lacking) <= _VOLUME_TOLERANCE * target_mm3:
            return
        offset = float(np.clip(lacking / mesh.area, -step_mm, step_mm))
        mesh.vertices = np.asarray(mesh.vertices) + offset * np.asarray(mesh.vertex_normals)


def fewer_triangles(meshes: Mapping[str, Trimesh], most: int) -> dict[str, Trimesh]:
    """Return surfaces of at most so many triangles together, all reduced by the same share (quadric decimation).

    Args:
        meshes: surfaces by name; they stay as they are.
        most: triangles of all surfaces together, > 0.

    Raises:
        ImportError: fast-simplification is missing.
    """
    total = sum(len(mesh.faces) for mesh in meshes.values())
    if total <= most:
        return dict(meshes)
    viewer_package("fast_simplification")
    shares = {name: max(4, len(mesh.faces) * most // total) for name, mesh in meshes.items()}
    return {name: mesh.simplify_quadric_decimation(face_count=shares[name]) for name, mesh in meshes.items()}


def write_stl(folder: str | Path, meshes: Mapping[str, Trimesh]) -> list[Path]:
    """Write one binary STL file per surface, in RAS+ millimeters: ``prediction/whole tumor`` to
    ``prediction_1_whole_tumor.stl``, numbered among the surfaces of its kind.

    Args:
        folder: created if absent.
        meshes: surfaces by ``<kind>/<structure>``.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, mesh in meshes.items():
        kind, _, structure = name.partition("/")
        number = 1 + sum(path.name.startswith(f"{kind}_") for path in written)
        plain = re.sub(r"[^A-Za-z0-9]+", "_", structure).strip("_") or "structure"
        path = target / f"{kind}_{number}_{plain}.stl"
        mesh.export(path)
        written.append(path)
    return written


def write_scene(path: str | Path, meshes: Mapping[str, Trimesh], colors: Mapping[str, str]) -> Path:
    """Write all surfaces into one GLB file, a node of its name and color each; truth is translucent.

    By the glTF standard the scene is in meters with +Y up: superior is +Y, anterior +Z, the patient's right -X. Each
    node holds that change (:data:`GLTF_FROM_RAS`) as its matrix; the vertices below it stay in RAS+ millimeters.

    Args:
        path: the file; its folder must exist.
        meshes: surfaces by ``<kind>/<structure>``, at least one.
        colors: ``#rrggbb`` by the same names.

    Raises:
        ValueError: there is no surface.
    """
    if not meshes:
        raise ValueError("there is no surface; a scene needs at least one")
    trimesh, visual = viewer_package("trimesh"), viewer_package("trimesh.visual")
    scene = trimesh.Scene()
    for name, mesh in meshes.items():
        shown = mesh.copy()
        shown.visual = visual.TextureVisuals(material=_material(name, colors[name]))
        scene.add_geometry(shown, node_name=name, geom_name=name, transform=GLTF_FROM_RAS)
    Path(path).write_bytes(scene.export(file_type="glb", include_normals=True))
    return Path(path)


def _material(name: str, color: str) -> Any:
    rgb = [int(color[start : start + 2], 16) for start in (1, 3, 5)]
    seen_through = name.startswith("truth/")
    return viewer_package("trimesh.visual.material").PBRMaterial(
        name=name,
        baseColorFactor=[*rgb, 90 if seen_through else 255],
        alphaMode="BLEND" if seen_through else "OPAQUE",
        metallicFactor=0.0,
        roughnessFactor=0.7,
        doubleSided=True,
    )


def viewer_package(name: str) -> Any:
    """Import a module of the extra ``viewer``.

    Raises:
        ImportError: it is missing; says what to install.
    """
    module, found = optional_import(name)
    if not found:
        raise ImportError(f"the viewer needs {name.partition('.')[0]}: pip install 'monai_kd[viewer]'")
    return module
