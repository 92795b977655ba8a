from __future__ import annotations

import platform

import pytest
import torch

from tutelage.config.schema import TrainConfig
from tutelage.errors import ConfigError
from tutelage.train.environment import (
    choose_device,
    describe_environment,
    keep_freed_memory,
)


def test_asking_for_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(TrainConfig()) == torch.device("cpu")
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_device(TrainConfig(device="cuda:1"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_glibc_can_be_told_to_keep_freed_memory() -> None:
    assert keep_freed_memory()


def test_the_environment_names_versions_and_threads() -> None:
    found = describe_environment(torch.device("cpu"))
    assert found["device"] == "cpu" and found["threads"] == torch.get_num_threads()
    assert isinstance(found["packages"], dict) and found["packages"]["torch"] == torch.__version__
