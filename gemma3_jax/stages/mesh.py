"""The mesh of a stage."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from gemma3_jax import chips, settings, sharding


def make(config: settings.StageConfig, devices: Sequence | None = None) -> Mesh:
    """Returns the mesh of a stage; axis `data` takes the devices that remain. `devices`: None for all of JAX's.

    Raises: ValueError if the axes do not multiply to the number of devices, or to a part of them on one host.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: getattr(config.mesh, axis) for axis in sharding.AXES}
    others = math.prod(sizes[axis] or 1 for axis in sharding.AXES if axis != "data")
    if not sizes["data"]:
        if len(devices) % others:
            raise ValueError(
                f"mesh has replica x seq x model = {others}, which does not divide the {len(devices)} devices; "
                "change one, or set data to use fewer devices"
            )
        sizes["data"] = len(devices) // others
    mesh = sharding.make_mesh(**{axis: size or 1 for axis, size in sizes.items()}, devices=devices)
    if jax.process_count() > 1 and mesh.size != jax.device_count():
        raise ValueError(
            f"mesh has {mesh.size} devices of {jax.device_count()} on {jax.process_count()} hosts; all devices of "
            "all hosts must be in it: make the axes multiply to the number of devices"
        )
    return mesh


def compiler_options(mesh: sharding.AnyMesh) -> dict[str, str]:
    """Options of XLA for a program on this mesh; none for a mesh without devices, for which nothing is compiled."""
    return chips.compiler_options(mesh.devices.flat[0].device_kind) if isinstance(mesh, Mesh) else {}
