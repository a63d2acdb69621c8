"""Readers of shards that know how many of them are open."""

from gemma3_jax.data import shards


def counted(monkeypatch) -> list[int]:
    """Returns a list of one number, that of the readers which are open now; of those that are opened from here on."""
    num_open = [0]

    class Reader(shards.Reader):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            num_open[0] += 1

        def close(self):
            super().close()
            num_open[0] -= 1

    monkeypatch.setattr(shards, "Reader", Reader)
    return num_open
