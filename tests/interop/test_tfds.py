"""A TensorFlow dataset is a source, read at random and without TensorFlow."""

import subprocess
import sys

import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from gemma3_jax.data import dataset  # noqa: E402
from gemma3_jax.data.prepare import settings, source_kinds, sources  # noqa: E402
from tests import texts  # noqa: E402

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A dataset of 20 texts, prepared by TFDS itself in the array_record format."""
    directory = tmp_path_factory.mktemp("tfds")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="toy",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "lang": tfds.features.Text()}),
        split_datasets={
            "train": [(n, {"text": f"row {n} \u00e9", "lang": "en" if n % 2 else "de"}) for n in range(20)]
        },
        data_dir=str(directory),
        file_format="array_record",
        disable_shuffling=True,
    )
    return directory


def test_rows_come_in_order_whatever_the_cut(data_dir, monkeypatch):
    source = settings.SourceConfig(kind="tfds", dataset="toy", data_dir=str(data_dir), language_field="lang")
    monkeypatch.setattr(source_kinds, "ROWS_PER_UNIT", 7)
    units = sources.units({"toy": source})
    records = [record for unit in units for record in sources.read(unit, source)]
    assert len(units) == 3 and [record.text for record in records] == [f"row {n} \u00e9" for n in range(20)]
    assert [record.language for record in records[:2]] == ["de", "en"]
    assert sources.describe({"toy": source}, units, records[9].record_id) == "toy, row 9"


def test_a_data_set_is_prepared_without_tensorflow(data_dir, tmp_path):
    texts.config(tmp_path, {})
    code = (
        "import sys\nfrom gemma3_jax.data.prepare import settings\nfrom tests import texts\nimport pathlib\n"
        f"source = settings.SourceConfig(kind='tfds', dataset='toy', data_dir={str(data_dir)!r},\n"
        "                               language_field='lang')\n"
        f"config = texts.config(pathlib.Path({str(tmp_path)!r}), {{'toy': source}})\n"
        f"texts.run(config, pathlib.Path({str(tmp_path / 'out')!r}))\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = dataset.open_dataset(tmp_path / "out").manifest["parts"]
    assert {name: part["documents"] for name, part in parts.items()} == {"text/de": 10, "text/en": 10}


def test_a_dataset_that_is_not_there_is_refused(tmp_path):
    source = settings.SourceConfig(kind="tfds", dataset="no_such_dataset", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="TensorFlow dataset 'no_such_dataset' cannot be read: .* prepared already"):
        sources.units({"toy": source})
