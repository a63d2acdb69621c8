"""What a manifest says is checked before anything is trained on it."""

import json
import shutil

import pytest

from gemma3_jax.data import dataset, settings
from gemma3_jax.data.prepare import settings as prepare_settings
from tests import texts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    path = texts.write_lines(directory / "a.jsonl", [texts.library()[0][:2_000], texts.library()[1][:2_000]])
    sources = {"a": prepare_settings.SourceConfig(paths=(path,))}
    texts.run(texts.config(directory, sources, mixture={"text": settings.Bucket()}), directory / "out")
    return directory / "out"


@pytest.fixture
def copy(data, tmp_path):
    return shutil.copytree(data, tmp_path / "data")


def change(path, edit, *, sign: bool = True):
    """Edits the manifest; with `sign`, its digest fits the parts again."""
    manifest = json.loads((path / "manifest.json").read_text())
    edit(manifest)
    if sign:
        manifest["digest"] = dataset.digest([manifest["tokenizer"]["digest"], manifest["parts"]])
    (path / "manifest.json").write_text(json.dumps(manifest))


def part(manifest):
    return manifest["parts"]["text/en"]


def file(manifest):
    return part(manifest)["files"]["rows-00064"][0]


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "is not JSON"),
        (b"[]", "is a list; it must be a JSON object"),
        (b"[" * 100_000, "is not JSON that can be read .it is nested too deeply"),
        (b'{"format": 1, "digest": "\xff"}', "is not UTF-8"),
        (b"{}", "has no field format"),
        (b'{"format": "1"}', "format is '1'; it must be an integer"),
        (b'{"format": true}', "format is true; it must be an integer"),
        (b'{"format": 1}', "has no field digest"),
    ],
)
def test_a_manifest_that_is_none_is_named(tmp_path, content, problem):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path} is damaged: manifest.json:? {problem}.*; copy or prepare"):
        dataset.open_dataset(tmp_path)


@pytest.mark.parametrize(
    "edit, problem",
    [
        (lambda m: m.update(digest=3), "digest is 3; it must be text"),
        (lambda m: m.update(seq_lens="64"), "seq_lens is '64'; it must be a list"),
        (lambda m: m.update(seq_lens=[64.5]), r"seq_lens\[0\] is 64.5; it must be an integer"),
        (lambda m: m.update(parts=[]), "parts is a list; it must be an object"),
        (lambda m: m["parts"].update(x=[]), "parts.x is a list; it must be an object"),
        (lambda m: m.update(tokenizer={}), "tokenizer has no field digest"),
        (lambda m: m["mixture"]["text"].pop("weight"), "mixture.text has no field weight"),
        (lambda m: m["mixture"]["text"].update(color=1), "mixture.text has an unknown field color"),
        (lambda m: m["mixture"]["text"].update(weight=0), "mixture.text has weight 0, .* must be over 0 and finite"),
        (lambda m: m["mixture"]["text"].update(languages="en"), "mixture.text: languages is 'en'; it must be a list"),
        (lambda m: part(m).pop("characters"), "parts.text/en has no field characters"),
        (lambda m: part(m).update(rows={"64": "3"}), "parts.text/en: rows.64 is '3'; it must be an integer"),
        (lambda m: part(m).update(files={"rows-00064": {}}), "parts.text/en: files.rows-00064 is an object; it must"),
        (lambda m: file(m).pop("path"), r"parts.text/en.files.rows-00064\[0\] has no field path"),
        (
            lambda m: file(m).update(records=None),
            r"parts.text/en.files.rows-00064\[0\]: records is null; it must be an integer",
        ),
    ],
)
def test_a_field_that_is_absent_or_of_another_kind_is_named(copy, edit, problem):
    change(copy, edit, sign=False)
    with pytest.raises(ValueError, match=f"data is damaged: manifest.json:? {problem}"):
        dataset.open_dataset(copy)


@pytest.mark.parametrize(
    "edit, problem",
    [
        (lambda m: part(m)["rows"].update({"64": 999}), r"text/en has 999 rows of 64 tokens, and its files have \d+"),
        (lambda m: part(m).update(rows={}), r"text/en has None rows of 64 tokens, and its files have \d+"),
        (lambda m: part(m).update(files={}), r"text/en has \d+ rows of 64 tokens, and its files have 0"),
        (
            lambda m: part(m)["files"]["rows-00064"].append(file(m)),
            r"text/en.files.rows-00064\[1\] is rows-.* a second time",
        ),
        (lambda m: part(m).update(characters=-1), "text/en has a count below 0"),
    ],
)
def test_a_manifest_that_does_not_agree_with_itself_is_refused(copy, edit, problem):
    change(copy, edit)
    with pytest.raises(ValueError, match=f"data is damaged: manifest.json: parts.{problem}; copy or prepare the data"):
        dataset.open_dataset(copy)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "rows-00064/../../x", "", "a\\..\\x", "a\0b"])
def test_a_path_out_of_the_data_set_is_refused(copy, path):
    change(copy, lambda manifest: file(manifest).update(path=path))
    with pytest.raises(ValueError, match=r"files.rows-00064\[0\] is .*; it must be a path below the directory of the"):
        dataset.open_dataset(copy)


def test_numbers_that_were_changed_do_not_fit_the_digest(copy):
    change(copy, lambda manifest: part(manifest).update(characters=part(manifest)["characters"] + 1), sign=False)
    with pytest.raises(ValueError, match=r"manifest.json has the digest \w{12}, and its parts have \w{12}; copy or"):
        dataset.open_dataset(copy)


def test_what_prepare_writes_opens(data):
    opened = dataset.open_dataset(data)
    assert opened.mixture() == {"text": settings.Bucket()} and opened.num_ids == texts.TOKENIZER_SIZE
    assert [file["path"] for file in opened.files()] == ["rows-00064/text/en/00000-of-00001.array_record"]
