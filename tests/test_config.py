"""Every recipe survives JSON; every number refuses what is no number or out of bounds, by its name."""

import math
import re

import annotated_types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditlab.config import KINDS, Config, ImagesData, SamplingConfig
from ditlab.config.section import Section
from ditlab.core.errors import ConfigError, InputError
from ditlab.data.images.survey import Survey
from ditlab.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_json_round_trip(recipe):
    config = RECIPES[recipe]()
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert RECIPES[recipe].__doc__.count("ditlab train") == 1


def sections():
    return [Config, SamplingConfig, ImagesData, *(kind for kinds in KINDS.values() for kind in kinds.values())]


def numeric_fields():
    for section in sections():
        for name, field in section.model_fields.items():
            if field.annotation in (int, float):
                yield pytest.param(section, name, field, id=f"{section.__name__}.{name}")


def make(section, **values):
    base = {Config: RECIPES["circles"]().model_dump(), ImagesData: {"path": "x", "image_size": [4]}}.get(section, {})
    return section(**{**base, **values})


@pytest.mark.parametrize(("section", "name", "field"), list(numeric_fields()))
def test_numbers_refuse_what_is_no_number_or_out_of_bounds(section, name, field):
    bad = [math.nan, math.inf, -math.inf, "x", None]
    for bound in field.metadata:
        if isinstance(bound, annotated_types.Ge):
            bad.append(bound.ge - 1)
        if isinstance(bound, annotated_types.Gt):
            bad += [bound.gt, bound.gt - 1]
        if isinstance(bound, annotated_types.Le):
            bad.append(bound.le + 1)
        if isinstance(bound, annotated_types.Lt):
            bad += [bound.lt, bound.lt + 1]
    for value in bad:
        with pytest.raises(ConfigError, match=rf"(^|; ){section.prefix}{name}="):
            make(section, **{name: value})


@given(name=st.text("abcdefghij_", min_size=1, max_size=12))
def test_unknown_settings_are_named(name):
    if name not in Config.model_fields:
        with pytest.raises(ConfigError, match=f"unknown setting {name}"):
            make(Config, **{name: 1})


@given(lr=st.floats(), steps=st.integers())
def test_accepted_or_refused_by_name(lr, steps):
    """Whatever is given: either a configuration that is equal after JSON, or one line that names what is wrong."""
    try:
        config = make(Config, lr=lr, steps=steps)
    except ConfigError as error:
        message = str(error)
    else:
        assert 0 < lr <= 1000
        assert steps >= 1
        assert Config.model_validate_json(config.model_dump_json()) == config
        return
    assert "lr=" in message or "steps=" in message
    assert "\n" not in message


def test_nested_settings_are_named_whole():
    data = RECIPES["circles"]().model_dump()
    data["network"]["patch_size"] = 0
    with pytest.raises(ConfigError, match=r"network\.patch_size=0"):
        Config(**data)
    data["network"] = {"kind": "rnn"}
    with pytest.raises(ConfigError, match="network"):
        Config(**data)


def test_sections_are_frozen():
    config = RECIPES["circles"]()
    assert isinstance(config, Section)
    with pytest.raises(Exception, match="frozen"):
        config.steps = 3


def test_an_image_size_is_a_side_or_height_and_width():
    assert ImagesData(path="x", image_size=(5,)).image_size == (5, 5)
    assert ImagesData(path="x", image_size=(5, 6)).image_size == (5, 6)
    for size in ((), (1, 2, 3), (0,), (2**14 + 1, 1)):
        with pytest.raises(ConfigError, match=r"data\.image_size"):
            ImagesData(path="x", image_size=size)


@pytest.mark.parametrize("labels", [None, ("a", "b")])
def test_images_of_any_size_get_a_network_or_a_size_that_would(labels):
    """And the size that is named in a refusal is not refused."""
    for height, width in [
        (1, 1),
        (8, 8),
        (16, 16),
        (28, 28),
        (32, 32),
        (33, 33),
        (31, 31),
        (64, 48),
        (97, 97),
        (640, 333),
    ]:
        seen = Survey("/x", 40, (height, width), 1, labels)
        try:
            config = RECIPES["images"](seen, (height, width))
        except InputError as error:
            height, width = map(int, re.findall(r"use --data.image-size (\d+) (\d+)", str(error))[0])
            config = RECIPES["images"](seen, (height, width))
        side = config.network.patch_size
        assert height % side == width % side == 0
        assert height * width // side**2 <= 1024
        assert config.data.image_size == (height, width)
        assert (config.data.channels, config.data.classes, config.batch_size) == (1, labels, 40)
        assert (config.sampling.guidance != 1) == (labels is not None)


def test_images_of_several_or_large_sizes_need_one_that_is_asked_for():
    assert RECIPES["images"](Survey("/x", 1000, (28, 30), 3, None)).data.image_size == (28, 30)
    for size, said in ((None, "several sizes"), ((375, 500), "375×500 pixels")):
        with pytest.raises(InputError, match=f"{said}: add --data.image-size"):
            RECIPES["images"](Survey("/x", 1000, size, 3, None))
