"""Makes hf_logits.npz: what Transformers answers for every toy variant. Needs the extra [interop].

    python tests/golden/make_hf_goldens.py

For each variant: the config.json that Transformers writes, tokens, and float32 logits (of a sample of columns where the
vocabulary is large). The weights are not stored: tests/toys.py makes the same ones anywhere.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from tests import toys  # noqa: E402
from tests.interop import hf_models  # noqa: E402

OUTPUT = pathlib.Path(__file__).with_name("hf_logits.npz")
MAX_COLUMNS = 128


def main() -> None:
    arrays = {}
    for name in toys.VARIANTS:
        model = toys.variant(name)
        hf_model = hf_models.build(model, toys.hf_weights(model))
        tokens = toys.tokens(model, num_rows=2, num_tokens=24)
        logits = hf_models.logits(hf_model, tokens)
        columns = np.linspace(0, model.vocab_size - 1, min(MAX_COLUMNS, model.vocab_size)).astype(np.int32)
        arrays[f"{name}/config"] = np.array(hf_model.config.to_json_string(use_diff=False))
        arrays[f"{name}/tokens"] = tokens
        arrays[f"{name}/columns"] = columns
        arrays[f"{name}/logits"] = logits[..., columns]
    np.savez_compressed(OUTPUT, **arrays)
    print(f"wrote {OUTPUT}: {OUTPUT.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
