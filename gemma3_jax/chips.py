"""What a chip can do at most: the one table that shares of it are counted by."""

import re

# (pattern of JAX's device_kind, peak TFLOP/s in bfloat16); the first match counts.
# Source: docs.cloud.google.com/tpu; NVIDIA's data sheets of the SXM parts, without sparsity.
_CHIPS = (
    ("TPU v4", 275.0),
    ("TPU v5 lite|TPU v5e", 197.0),
    ("TPU v5", 459.0),
    ("TPU v6", 918.0),
    ("H100|H200", 989.0),
)


def peak_flops(device_kind: str) -> float | None:
    """Floating-point operations a second in bfloat16; None for a device that is not in the table (a CPU is not)."""
    for pattern, teraflops in _CHIPS:
        if re.search(pattern, device_kind):
            return teraflops * 1e12
    return None
