"""Every recipe survives JSON; every number refuses what is no number or out of bounds, by its name."""

import math

import annotated_types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditlab.config import KINDS, Config, SamplingConfig, Section
from ditlab.errors import ConfigError
from ditlab.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_json_round_trip(recipe):
    config = RECIPES[recipe]()
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert RECIPES[recipe].__doc__.count("ditlab train") == 1


def sections():
    return [Config, SamplingConfig, *(kind for kinds in KINDS.values() for kind in kinds.values())]


def numeric_fields():
    for section in sections():
        for name, field in section.model_fields.items():
            if field.annotation in (int, float):
                yield pytest.param(section, name, field, id=f"{section.__name__}.{name}")


def make(section, **values):
    base = {} if section is not Config else RECIPES["circles"]().model_dump()
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
