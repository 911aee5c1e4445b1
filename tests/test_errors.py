from __future__ import annotations

import pytest

from spwnet import errors


def test_every_error_is_a_value_error_of_this_package():
    children = [errors.InputError, errors.SettingsError, errors.OutputError, errors.RunError, errors.Stopped]
    assert all(issubclass(child, errors.SpwnetError) for child in children)
    assert issubclass(errors.SpwnetError, ValueError)


@pytest.mark.parametrize(("name", "hint"), [("epoch", " Did you mean 'epochs'?"), ("zzz", "")])
def test_did_you_mean(name, hint):
    assert errors.did_you_mean(name, ["epochs", "seed"]) == hint
