"""Data sets of what is at hand: that every sample comes once an epoch with its own conditions, and what is refused."""

import numpy as np
import pytest
import torch

import ditlab
from ditlab.core.errors import InputError

N = 10
X = torch.arange(N, dtype=torch.float32)[:, None].expand(N, 3) / 10
LABELS = torch.arange(N) % 3
AGES = torch.linspace(20, 65, N)


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i], int(LABELS[i])


class Dicts(Pairs):
    def __getitem__(self, i):
        return {"x": X[i], "species": ["ant", "bee", "cat"][LABELS[i]], "age": float(AGES[i])}


def given(kind):
    if kind == "tensors":
        return ditlab.as_dataset(X, cond={"label": LABELS, "age": AGES}, units={"age": "years"})
    if kind == "arrays":
        return ditlab.as_dataset(X.numpy(), cond={"label": LABELS.numpy(), "age": AGES.numpy()}, units={"age": "years"})
    if kind == "dicts":
        return ditlab.as_dataset(Dicts(), cond={"label": "species", "age": "age"}, units={"age": "years"})
    return ditlab.as_dataset(Pairs())


@pytest.mark.parametrize("kind", ["tensors", "arrays", "dicts", "pairs"])
def test_an_epoch_has_each_sample_once_with_its_own_conditions(kind):
    data = given(kind)
    assert (data.shape, len(data), len(data.conditions["label"])) == ((3,), N, 3)
    x0, cond = data.batch(seed=1, position=N, size=N)
    numbers = (x0[:, 0] * 10).round().long()
    assert sorted(numbers.tolist()) == list(range(N))
    assert torch.equal(numbers, data.indices(1, N, N))
    assert torch.equal(cond["label"], LABELS[numbers])
    pieces = [data.batch(1, N + first, 5).x0 for first in (0, 5)]
    assert torch.equal(torch.cat(pieces), x0)
    if kind != "pairs":
        age = data.conditions["age"]
        assert (age.unit, age.mean) == ("years", pytest.approx(42.5))
        torch.testing.assert_close(cond["age"] * age.std + age.mean, AGES[numbers])
        assert float(cond["age"].std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_names_of_labels_and_pictures():
    pictures = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 1, 4, 4)
    data = ditlab.as_dataset(pictures, cond={"label": ["cat", "ant"]})
    assert data.conditions["label"].names == ("ant", "cat")
    x0, cond = data.batch(0, 0, 2)
    for image, label in zip(x0, cond["label"], strict=True):
        assert torch.equal(image, torch.full((1, 4, 4), -1.0 if label == 1 else 1.0))


def test_a_hugging_face_data_set():
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    rows = datasets.Dataset.from_dict(
        {"image": [Image.fromarray(p) for p in pixels], "kind": [1, 0, 1, 1], "size": [1.0, 2.0, 3.0, 4.0]},
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "kind": datasets.ClassLabel(names=["bird", "fish"]),
                "size": datasets.Value("float32"),
            }
        ),
    )
    data = ditlab.as_dataset(rows, cond={"label": "kind", "size": "size"})
    assert data.shape == (3, 5, 6)
    assert data.conditions["label"].names == ("bird", "fish")
    assert data.conditions["size"].mean == 2.5
    x = data.samples(torch.tensor([2]))
    assert torch.equal(((x + 1) * 127.5).round().byte(), torch.from_numpy(pixels[2:3]).permute(0, 3, 1, 2))


def test_unknown_numbers_stay_unknown():
    data = ditlab.as_dataset(X, cond={"age": [float("nan")] + [3.0] * (N - 1)})
    assert (data.conditions["age"].mean, data.conditions["age"].std) == (3, 1)
    assert data.cond["age"].isnan().tolist() == [True] + [False] * (N - 1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ditlab.as_dataset(torch.zeros(0, 2)), "at least 1"),
        (lambda: ditlab.as_dataset([]), "no samples"),
        (lambda: ditlab.as_dataset(iter([])), "no length"),
        (lambda: ditlab.as_dataset(torch.tensor([[0.0], [torch.nan]])), "sample 1 holds NaN"),
        (lambda: ditlab.as_dataset([X[0], X[0][:2]]).batch(0, 0, 2), r"sample 1 has shape \(2,\)"),
        (lambda: ditlab.as_dataset(X, cond={"label": AGES}), "whole numbers"),
        (lambda: ditlab.as_dataset(X, cond={"label": LABELS[:4]}), "4 values for 10 samples"),
        (lambda: ditlab.as_dataset(X, cond={"age": ["old"] * N}), "must be"),
        (lambda: ditlab.as_dataset(Dicts(), cond={"label": "kind"}), "no kind in the data"),
    ],
)
def test_what_is_refused(make, said):
    with pytest.raises(InputError, match=said) as error:
        make()
    assert "\n" not in str(error.value)
