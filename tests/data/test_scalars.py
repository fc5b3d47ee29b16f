"""Scalars are the numbers of a column: standardised for the network, NaN where they are unknown, asked for by name."""

import json
import math
import statistics

import pytest
import torch

from ditlab.config import Config, ImagesData
from ditlab.core.errors import ConfigError, InputError
from ditlab.data.conditions import Scalar
from ditlab.data.images.check import check
from ditlab.data.images.dataset import Images
from ditlab.data.images.labels import numbers
from ditlab.data.images.open import open_source
from ditlab.data.images.survey import survey
from ditlab.recipes import images
from ditlab.runs.build import build_dataset
from tests.data.test_images_tables import parquet, rows, tar
from tests.images import folder_of, png, write

AGES = [3.0, 10.0, None, -2.5, 40.0, ""]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "cache"))
    root = folder_of(tmp_path / "r", each=3)
    lines = [{"file_name": f"../{'ab'[i // 3]}/{i:04d}.png", "age": age} for i, age in enumerate(AGES)]
    write(root / "tables" / "metadata.jsonl", "\n".join(map(json.dumps, lines)).encode())
    return root


def test_a_batch_has_the_standardised_numbers_of_its_images(root):
    seen = survey(str(root), scalars=("age",))
    known = [3.0, 10.0, -2.5, 40.0]
    mean, std = statistics.fmean(known), statistics.pstdev(known)
    assert seen.scalars["age"] == pytest.approx((mean, std), rel=1e-12)
    config = images(seen)
    data = build_dataset(Config.model_validate_json(config.model_dump_json()))
    assert data.conditions["age"] == Scalar("", *config.data.scalar_scales["age"])
    cond = data.batch(1, 4, 9).cond
    wanted = [AGES[i] if isinstance(AGES[i], float) else math.nan for i in data.indices(1, 4, 9)]
    assert cond["age"].dtype == torch.float32
    torch.testing.assert_close(cond["age"], (torch.tensor(wanted) - mean) / std, equal_nan=True)


def test_images_that_cannot_be_used_take_their_numbers_with_them(root):
    write(root / "a" / "0001.png", b"spoilt")
    data = Images(str(root), (8, 8), bad_share=1, scalars={"age": Scalar()})
    by_name = {
        data.name(int(i)): data.batch(0, k, 1).cond["age"].item() for k in range(5) for i in data.indices(0, k, 1)
    }
    assert (len(by_name), by_name["a/0000.png"], by_name["b/0003.png"], by_name["b/0004.png"]) == (5, 3, -2.5, 40)


def test_other_numbers_are_other_data_and_without_scalars_nothing_changes(root):
    plain, aged = Images(str(root), (8, 8)), Images(str(root), (8, 8), scalars={"age": Scalar()})
    before = aged.fingerprint
    assert plain.fingerprint == f"6 images, {plain.store.fingerprint[:16]}" != before
    assert plain.store.folder == aged.store.folder  # the pixels are prepared once for both
    table = root / "tables" / "metadata.jsonl"
    table.write_text(table.read_text().replace("40.0", "41.0"))
    assert Images(str(root), (8, 8)).fingerprint == plain.fingerprint
    assert Images(str(root), (8, 8), scalars={"age": Scalar()}).fingerprint != before


def test_csv_parquet_and_tars_have_columns_too(tmp_path, monkeypatch):
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "cache"))
    folder = folder_of(tmp_path / "r", (), each=3)
    write(folder / "metadata.csv", b"file_name,age\n0000.png,3\n0002.png,1e1\n0001.png,\n")
    members = {f"{i}.{kind}": body for i in range(3) for kind, body in (("png", png(i)), ("json", b"{}"))}
    members |= {"0.json": b'{"age": 3}', "2.json": b'{"age": 10}'}
    entries = [{**row, "age": age} for row, age in zip(rows(3), (3, None, 10), strict=True)]
    for path in (folder, tar(tmp_path / "t.tar", members), parquet(tmp_path / "p.parquet", entries)):
        found = numbers(open_source(str(path)), "age")
        assert (found[0], math.isnan(found[1]), found[2]) == (3, True, 10)
        with pytest.raises(InputError, match=r"no column size.*age"):
            numbers(open_source(str(path)), "size")


@pytest.mark.parametrize("value", ["seven", True, [7], float("inf"), 10**400])
def test_the_first_cell_that_is_no_number_is_named(root, value):
    line = {"file_name": "0001.png", "age": value}
    write(root / "a" / "metadata.jsonl", json.dumps(line).encode())
    (root / "tables" / "metadata.jsonl").unlink()
    with pytest.raises(InputError, match=r"column age.*a/0001\.png"):
        survey(str(root), scalars=("age",))


def test_a_column_without_numbers_and_scalars_without_scales_are_refused(root):
    (root / "tables" / "metadata.jsonl").write_text('{"file_name": "../a/0000.png", "age": "", "text": "cat"}')
    with pytest.raises(InputError, match="no image has a number in column age"):
        survey(str(root), scalars=("age",))
    (root / "tables" / "metadata.jsonl").unlink()
    with pytest.raises(InputError, match=r"no column age.*metadata"):
        survey(str(root), scalars=("age",))
    with pytest.raises(ConfigError, match="age has no mean"):
        ImagesData(path=str(root), image_size=(8,), scalars=("age",))


def test_a_check_describes_each_scalar(root):
    found = check(open_source(str(root)), scalars=("age",)).scalars["age"]
    assert found == {"known": 4, "missing": 2, "min": -2.5, "mean": statistics.fmean([3, 10, -2.5, 40]), "max": 40}
